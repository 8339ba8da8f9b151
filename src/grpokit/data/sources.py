"""Finds a dataset: a file, a folder of files, or one of the Hub. Each of its rows comes with its place, for messages.

* `.jsonl` (or any other ending): one JSON object per line; `.json`: the same, or one array of objects;
* `.csv`, `.tsv`: the first line names the columns, every value is text, an empty cell is null;
* `.parquet`, through pyarrow; NaN, which pandas writes for a missing number, is null;
* `.arrow`, through pyarrow;
* a folder of such files (or its `data/`), whose names give the split: `train.jsonl`, `test-00000-of-00002.parquet`;
* a folder that `datasets` has saved to disk; `folder:config`, for a configuration of a snapshot of the Hub;
* `org/name` or `org/name:config`: a dataset of the Hugging Face Hub, through `datasets`.

Text files may be gzipped. `files.py` reads files, `folders.py` finds them, `rows.py` interprets the rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.hub import dataset_cache
from ..common.text import did_you_mean, one_line
from .files import KINDS, RawRow, file_rows, import_package, kind_of, or_error, plain, suffix_of
from .folders import find_files, split_in

if TYPE_CHECKING:
    from .addressed import AddressedRows

TRAINING = ("train",)
HELD_OUT = ("test", "validation")  # the splits to evaluate on, where there are several
SPLIT_FLAGS = {"--eval_dataset": "--eval_split"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A dataset that was found but not yet read. `rows()` reads it.

    Example:
        `next(open_dataset("train.jsonl", "--dataset").rows())` returns `("train.jsonl:1", {"prompt": "31="})`.
    """

    name: str  # as the user wrote it
    flag: str  # the option that named it, for messages
    kind: str  # "JSON lines", "3 Parquet files", "the Hub"
    split: str  # "" where nothing names one
    left_out: tuple[str, ...]  # files of its folder that belong to no split
    rows: Callable[[], Iterator[RawRow]]
    addressed: Callable[[], AddressedRows] | None = None  # the rows by their number, where that is possible
    files: tuple[Path, ...] = ()  # the files that hold them


def is_hub_name(name: str) -> bool:
    """Checks whether `name` can only be a dataset of the Hub: org/name or org/name:config, and no such path."""
    is_data_file = suffix_of(Path(name)) in KINDS
    return not is_dataset_path(name) and not is_data_file and HUB_NAME.fullmatch(name) is not None


def is_dataset_path(name: str) -> bool:
    """Checks whether `name` is a file or folder that exists, or a folder's configuration, folder:config."""
    return os.path.exists(split_config(name)[0])


def split_config(name: str) -> tuple[str, str]:
    """Returns the path and the configuration of `folder:config`; ("path", "") for any other name."""
    folder, _, config = name.rpartition(":")
    if os.path.exists(name) or not os.path.isdir(folder) or not re.fullmatch(r"[\w.-]+", config):
        return name, ""
    return folder, config


def open_dataset(
    name: str | os.PathLike[str], flag: str, split: str = "", preferred: Sequence[str] = TRAINING
) -> Source:
    """Finds a dataset and its split.

    Args:
        name: a file, a folder, or a dataset of the Hub.
        flag: the option that `name` came from, for messages.
        split: the split that the user asks for; "": the first of `preferred` that exists, or the only one.
        preferred: the splits to prefer.

    Returns:
        The dataset, not yet read.

    Raises:
        ValueError: nothing is there or can be read, the split is missing or ambiguous, or a package is missing.
    """
    name = os.fspath(name)
    wanted = _Wanted(name, flag, split, tuple(preferred))
    if is_hub_name(name):
        return _on_hub(wanted)
    folder, config = split_config(name)
    path = Path(folder)
    if path.is_dir():
        return _in_folder(path, config, wanted)
    own = split_in(path.name)
    if split and split != own:
        raise ValueError(
            f"{wanted.split_flag} {split}: {flag} {name} is one file; leave the split out, or name the folder"
        )
    rows = partial(file_rows, path, flag)
    return Source(name, flag, kind_of(path), own, (), rows, _addressed([path], flag), (path,))


@dataclass(frozen=True)
class _Wanted:
    name: str
    flag: str
    split: str
    preferred: tuple[str, ...]

    @property
    def split_flag(self) -> str:
        return SPLIT_FLAGS.get(self.flag, "--dataset_split")

    def choose(self, splits: Sequence[str]) -> str:
        """Chooses one of `splits`. Raises ValueError naming the flag and the splits that exist."""
        has = f"{self.flag} {self.name} has {', '.join(sorted(splits))}"
        if self.split:
            if self.split not in splits:
                near = did_you_mean(self.split, splits)
                raise ValueError(f"{self.split_flag} {self.split}: no such split{near}; {has}")
            return self.split
        found = [split for split in self.preferred if split in splits] or list(splits)
        if len(found) > 1 and found[0] not in self.preferred:
            raise ValueError(f"{self.split_flag}: which one? {has}")
        return found[0]


def _in_folder(folder: Path, config: str, wanted: _Wanted) -> Source:
    found = find_files(folder, config, f"{wanted.flag} {folder}")
    splits = {"train": found.splits[""]} if "" in found.splits else found.splits
    split = wanted.choose(list(splits))
    chosen = splits[split]
    kinds = sorted({kind_of(file) for file in chosen})
    if len(kinds) > 1:
        shown = ", ".join(file.name for file in chosen)
        raise ValueError(
            f"{wanted.flag} {folder}: split {split} has files of {' and '.join(kinds)} ({shown}); name the file to use"
        )

    def rows() -> Iterator[RawRow]:
        return chain.from_iterable(file_rows(file, wanted.flag) for file in chosen)

    kind = kinds[0] if len(chosen) == 1 else f"{len(chosen)} files of {''.join(kinds) or 'Arrow'}"
    kind = "saved by datasets" if found.saved else kind
    addressed = _addressed(chosen, wanted.flag)
    return Source(wanted.name, wanted.flag, kind, split, found.left_out, rows, addressed, tuple(chosen))


def _addressed(files: Sequence[Path], flag: str) -> Callable[[], AddressedRows] | None:
    """Returns what opens the rows of files by their number; None where one of them can only be read from its beginning."""
    from .addressed import JoinedRows, addressed_file, is_addressable  # with numpy, which is slow to import

    if not all(file.is_file() and is_addressable(file, flag) for file in files):
        return None
    return lambda: JoinedRows([addressed_file(file, flag) for file in files])


# --------------------------------------------------------------------------- the Hub


def _on_hub(wanted: _Wanted) -> Source:
    why = f"no such file or folder, and a dataset {wanted.name} of the Hub is read"
    datasets = import_package("datasets", wanted.flag, wanted.name, why)
    name, _, config = wanted.name.partition(":")
    try:
        with dataset_cache(name):
            loaded = datasets.load_dataset(
                name, config or None, **({"split": wanted.split} if wanted.split else {})
            )
    except Exception as error:  # the network, the Hub, the disk and the dataset each raise types of their own
        raise ValueError(
            f"{wanted.flag} {wanted.name}: no such file or folder, and the Hub's dataset of that name cannot be loaded: "
            f"{type(error).__name__}: {one_line(error)}; expected a path, org/name or org/name:config"
        ) from error
    split = wanted.split or wanted.choose(list(loaded))
    data = loaded if wanted.split else loaded[split]

    def rows() -> Iterator[RawRow]:
        for number, row in enumerate(data, 1):
            yield f"{wanted.name} {split}:{number}", or_error(plain, row)

    def addressed() -> AddressedRows:
        from .addressed import ItemRows

        return ItemRows(data, lambda number: f"{wanted.name} {split}:{number + 1}")

    return Source(wanted.name, wanted.flag, "the Hub", split, (), rows, addressed)
