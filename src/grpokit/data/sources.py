"""Finds and reads rows: from a file, a folder of files, or the Hub. Each row comes with its place, for messages.

* `.jsonl` (or any other ending): one JSON object per line; `.json`: the same, or one array of objects;
* `.csv`, `.tsv`: the first line names the columns, every value is text, an empty cell is null;
* `.parquet`, through pyarrow; NaN, which pandas writes for a missing number, is null;
* a folder of such files (or its `data/`), whose names give the split: `train.jsonl`, `test-00000-of-00002.parquet`;
* `org/name` or `org/name:config`: a dataset of the Hugging Face Hub, through `datasets`.

Text files may be gzipped. `rows.py` interprets the rows.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ..common.hub import dataset_cache
from ..common.text import did_you_mean, one_line
from .json_lines import json_array, json_lines, parse_json

# (place, values) of a row. A ValueError instead of values says what is wrong with it.
RawRow = tuple[str, Any]

KINDS = {".parquet": "Parquet", ".csv": "CSV", ".tsv": "TSV", ".json": "JSON", ".jsonl": "JSON lines"}
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
TRAINING = ("train",)
HELD_OUT = ("test", "validation")  # the splits to evaluate on, where there are several
SPLIT_FLAGS = {"--eval_dataset": "--eval_split"}
EXPECTED_FILES = f"expected files {', '.join(KINDS)} in it"
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


def is_hub_name(name: str) -> bool:
    """Checks whether `name` can only be a dataset of the Hub: org/name or org/name:config, and no such path."""
    is_data_file = _suffix(Path(name)) in KINDS
    return not os.path.exists(name) and not is_data_file and HUB_NAME.fullmatch(name) is not None


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
    path = Path(name)
    if path.is_dir():
        return _in_folder(path, wanted)
    own = split_in(path.name)
    if split and split != own:
        raise ValueError(
            f"{wanted.split_flag} {split}: {flag} {name} is one file; leave the split out, or name the folder"
        )
    return Source(name, flag, _kind(path), own, (), partial(_file_rows, path, flag))


def split_in(filename: str) -> str:
    """Returns the split in a file's name, or "". `train-00000-of-00002.parquet` is train, `gsm8k_dev.csv` validation.

    Example:
        >>> split_in("gsm8k_dev.csv")
        'validation'
    """
    words = re.split(r"[^a-z]+", filename.partition(".")[0].lower())
    found = (split for word in words for split, names in SPLIT_WORDS.items() if word in names)
    return next(found, "")


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


# --------------------------------------------------------------------------- folders


def _in_folder(folder: Path, wanted: _Wanted) -> Source:
    files = _data_files(folder) or _data_files(folder / "data")
    if not files:
        raise ValueError(f"{wanted.flag} {folder}: a folder without data; {EXPECTED_FILES}, or name a file")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_in(file.name), []).append(file)
    # If no name gives a split, all files are one dataset, as in the Hub's folders. Otherwise files without one are no
    # data.
    rest = splits.pop("", []) if len(splits) > 1 else []
    if "" in splits:
        splits = {"train": splits[""]}
    split = wanted.choose(list(splits))
    chosen = splits[split]
    kinds = sorted({_kind(file) for file in chosen})
    if len(kinds) > 1:
        shown = ", ".join(file.name for file in chosen)
        raise ValueError(
            f"{wanted.flag} {folder}: split {split} has files of {' and '.join(kinds)} ({shown}); name the file to use"
        )

    def rows() -> Iterator[RawRow]:
        return chain.from_iterable(_file_rows(file, wanted.flag) for file in chosen)

    kind = kinds[0] if len(chosen) == 1 else f"{len(chosen)} files of {kinds[0]}"
    return Source(wanted.name, wanted.flag, kind, split, tuple(file.name for file in rest), rows)


def _data_files(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(f for f in found if f.is_file() and _suffix(f) in KINDS and not f.name.startswith("."))


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _kind(path: Path) -> str:
    return KINDS.get(_suffix(path), "JSON lines")


# --------------------------------------------------------------------------- files


def _file_rows(path: Path, flag: str) -> Iterator[RawRow]:
    """Yields the rows of one file. Raises ValueError naming `flag` if it cannot be read to its end."""
    kind = _kind(path)
    if kind == "Parquet":
        return _parquet_rows(path, flag)
    if kind in ("CSV", "TSV"):
        return _csv_rows(path, flag, "," if kind == "CSV" else "\t")
    if kind == "JSON" and _begins_with(b"[", path, flag):
        return _numbered(path, json_array(path, flag))
    return _json_lines_rows(path, flag)


def _numbered(path: Path, rows: Iterator[tuple[int, Any]]) -> Iterator[RawRow]:
    return ((f"{path}:{number}", values) for number, values in rows)


def _json_lines_rows(path: Path, flag: str) -> Iterator[RawRow]:
    for number, line in json_lines(path, flag):
        if line.strip():
            yield f"{path}:{number}", _or_error(parse_json, line)


def _or_error(read: Callable[[Any], Any], value: Any) -> Any:
    """Returns `read(value)`, or the ValueError that it raises, so that reading goes on after a bad row."""
    try:
        return read(value)
    except ValueError as error:
        return error


def _begins_with(mark: bytes, path: Path, flag: str) -> bool:
    texts = (line.removeprefix(b"\xef\xbb\xbf").strip() for _, line in json_lines(path, flag))
    return next((text.startswith(mark) for text in texts if text), False)


def _csv_rows(path: Path, flag: str, delimiter: str) -> Iterator[RawRow]:
    """Yields the rows of a table. A row may span several lines; its place is the first of them."""
    # A prompt may be longer than the default limit of 131,072 characters.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(_decoded(path, flag), delimiter=delimiter, strict=True)
        names = next(reader, None)
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"{path}:1: two columns have one name: {', '.join(names)}; rename one")
        first = reader.line_num + 1
        for cells in reader:
            if cells:
                row = dict(zip(names or (), (cell or None for cell in cells), strict=False))
                wrong = ValueError(f"{len(cells)} cells; expected {len(names or ())}, one for each column")
                yield f"{path}:{first}", row if len(cells) == len(names or ()) else wrong
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: not {_kind(path)} to its end ({error}); expected quotes in pairs"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _decoded(path: Path, flag: str) -> Iterator[str]:
    """Yields lines of text. A line that is not UTF-8 ends the file, because cells can no longer be told from rows."""
    for number, line in json_lines(path, flag):
        try:
            yield line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error


def _parquet_rows(path: Path, flag: str) -> Iterator[RawRow]:
    """Yields rows with their number in the file, from 1."""
    parquet = _package("pyarrow.parquet", flag, str(path), "Parquet is read")
    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            for number, values in enumerate(chain.from_iterable(map(_batch_rows, batches)), 1):
                yield f"{path}:{number}", values
    except (OSError, _package("pyarrow", flag, str(path), "Parquet is read").ArrowException) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise ValueError(f"{flag} {path}: cannot be read as Parquet ({what})") from error


def _batch_rows(batch: Any) -> list[Any]:
    try:
        return [_or_error(plain, values) for values in batch.to_pylist()]
    except UnicodeDecodeError:  # in some row of the batch: reading the rows one by one finds it
        alone = (batch.slice(at, 1) for at in range(len(batch)))
        return [_or_error(lambda one: plain(one.to_pylist()[0]), one) for one in alone]


def plain(value: Any) -> Any:
    """Returns a value as JSON would have it: NaN is null.

    Raises:
        ValueError: infinity, or bytes that are not text.
    """
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError(f"{value} is not a number that JSON has; expected a finite one or null")
    return value


# --------------------------------------------------------------------------- the Hub


def _on_hub(wanted: _Wanted) -> Source:
    why = f"no such file or folder, and a dataset {wanted.name} of the Hub is read"
    datasets = _package("datasets", wanted.flag, wanted.name, why)
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
            yield f"{wanted.name} {split}:{number}", _or_error(plain, row)

    return Source(wanted.name, wanted.flag, "the Hub", split, (), rows)


def _package(module: str, flag: str, name: str, why: str) -> Any:
    """Imports a package of the extra `datasets`. Raises ValueError saying how to install it."""
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != top:
            raise
        raise ValueError(
            f"{flag} {name}: {why} by the package {top}, which isn't installed; pip install grpokit[datasets]"
        ) from error
