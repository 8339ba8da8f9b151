"""Finds the data files of a folder by split: plain files, a snapshot of the Hub, or what `datasets` has saved to disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.text import did_you_mean
from .files import KINDS, suffix_of

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What the Hub and `datasets` write about a dataset. It is never data.
METADATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json"}
# What others write about a dataset. It is data only where a folder has nothing else.
PERHAPS_METADATA = {"config.json", "info.json", "manifest.json", "metadata.json", "schema.json", "stats.json"}
EXPECTED_FILES = f"expected files {', '.join(KINDS)} in it"


@dataclass(frozen=True)
class Found:
    """The data files of a folder.

    Example:
        `Found({"train": [Path("train.jsonl")]}).splits["train"]` are the files of the training split.
    """

    splits: Mapping[str, list[Path]] = field(default_factory=dict)  # "" where no name gives a split
    left_out: tuple[str, ...] = ()  # names of files that belong to no split
    saved: bool = False  # whether `datasets` has saved it to disk


def split_in(filename: str) -> str:
    """Returns the split in a file's name, or "". `train-00000-of-00002.parquet` is train, `gsm8k_dev.csv` validation.

    Example:
        >>> split_in("gsm8k_dev.csv")
        'validation'
    """
    words = re.split(r"[^a-z]+", filename.partition(".")[0].lower())
    found = (split for word in words for split, names in SPLIT_WORDS.items() if word in names)
    return next(found, "")


def find_files(folder: Path, config: str, shown: str) -> Found:
    """Finds the data files of a folder.

    The first of these that has any: what `save_to_disk` wrote; the folder itself; its `data/`; its only subfolder with data.

    Args:
        folder: the folder.
        config: a configuration's name: one of the folder's README.md, or a subfolder; "": none.
        shown: the option and its value, which begin each message.

    Returns:
        The files by split.

    Raises:
        ValueError: there are none, no such configuration, or several of which none was named.
    """
    if config:
        return _configuration(folder, config, shown)
    if (saved := _saved(folder)) is not None:
        return saved
    own, inside = _by_split(folder), _by_split(folder / "data")
    if inside.splits and set(own.splits) <= {""}:  # a snapshot of the Hub: what lies beside data/ is about it
        beside = [file.name for file in own.splits.get("", [])]
        return Found(inside.splits, (*beside, *inside.left_out))
    if own.splits:
        return own
    configs = _subfolders(folder)
    if len(configs) == 1:
        return find_files(next(iter(configs.values())), "", shown)
    if configs:
        raise ValueError(
            f"{shown}: a folder of {len(configs)} configurations; name one, such as {shown}:{min(configs)}; "
            f"there are {', '.join(sorted(configs))}"
        )
    raise ValueError(f"{shown}: a folder without data; {EXPECTED_FILES}, or name a file")


# --------------------------------------------------------------------------- files by split


def _by_split(folder: Path) -> Found:
    """Returns the folder's own files and those of its folders that are named as splits."""
    files = [(split_in(file.name), file) for file in data_files(folder)]
    for inner in _folders(folder):
        if any(inner.name.lower() in words for words in SPLIT_WORDS.values()):
            files += [(split_in(inner.name), file) for file in data_files(inner)]
    return _grouped(files)


def _grouped(files: Iterable[tuple[str, Path]]) -> Found:
    splits: dict[str, list[Path]] = {}
    for split, file in files:
        splits.setdefault(split, []).append(file)
    # If no name gives a split, all files are one dataset, as in the Hub's folders. Otherwise files without one are no data.
    rest = splits.pop("", []) if len(splits) > 1 else []
    return Found(splits, tuple(file.name for file in rest))


def data_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that hold rows, in the order of their names; none where it is no folder."""
    items = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [
        file
        for file in items
        if file.is_file()
        and suffix_of(file) in KINDS
        and not file.name.startswith((".", "_"))
        and file.name not in METADATA
    ]
    return [file for file in found if file.name not in PERHAPS_METADATA] or found


def _folders(folder: Path) -> list[Path]:
    items = sorted(folder.iterdir()) if folder.is_dir() else []
    return [item for item in items if item.is_dir() and not item.name.startswith((".", "_"))]


# --------------------------------------------------------------------------- saved to disk


def _saved(folder: Path) -> Found | None:
    """Returns what `save_to_disk` of a Dataset or a DatasetDict wrote; None where it is no such folder."""
    names = _json(folder / "dataset_dict.json").get("splits")
    if names:
        return Found({name: _shards(folder / name) or [] for name in names}, saved=True)
    shards = _shards(folder)
    split = _json(folder / "state.json").get("_split") or ""
    return None if shards is None else Found({split: shards}, saved=True)


def _shards(folder: Path) -> list[Path] | None:
    """Returns the Arrow files of a saved Dataset, in the order of its state.json."""
    named = _json(folder / "state.json").get("_data_files")
    return None if named is None else [folder / str(file["filename"]) for file in named]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# --------------------------------------------------------------------------- configurations


def _configuration(folder: Path, config: str, shown: str) -> Found:
    declared = _declared(folder)
    if config in declared:
        found = _grouped(declared[config])
        if found.splits:
            return found
    subfolders = _subfolders(folder)
    if config in subfolders:
        return find_files(subfolders[config], "", shown)
    known = sorted({*declared, *subfolders})
    has = f"there are {', '.join(known)}" if known else "it has none, so leave the name out"
    raise ValueError(f"{shown}:{config}: no such configuration{did_you_mean(config, known)}; {has}")


def _subfolders(folder: Path) -> dict[str, Path]:
    """Returns the subfolders that hold data, by name: those of the folder, else those of its data/."""
    for parent in (folder, folder / "data"):
        found = {
            inner.name: inner
            for inner in _folders(parent)
            if _by_split(inner).splits or _by_split(inner / "data").splits or _saved(inner)
        }
        if found:
            return found
    return {}


def _declared(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Returns the configurations that the Hub's README.md declares in its first lines: name → (split, file)."""
    import yaml

    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    begin = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        values = yaml.safe_load(begin[1]) if begin else {}
        configs = values.get("configs") or []
        return {str(config["config_name"]): _declared_files(folder, config) for config in configs}
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError):  # written by hand, for the Hub
        return {}


def _declared_files(folder: Path, config: dict[str, Any]) -> list[tuple[str, Path]]:
    root = folder / config.get("data_dir", "")
    entries = config.get("data_files") or ["*"]
    found: list[tuple[str, Path]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        split, patterns = (entry["split"], entry["path"]) if isinstance(entry, dict) else ("", entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            files = [f for f in sorted(root.glob(pattern)) if f.is_file() and suffix_of(f) in KINDS]
            found += [(split or split_in(f.name), f) for f in files if f.name not in METADATA]
    return found
