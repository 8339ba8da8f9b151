"""Digests of what a run is made from, so that a resumed run knows its model, data and code again after they have moved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..common.text import FROM_PYTHON
from ..config.options import TrainConfig
from ..config.paths import resolved, split_path
from ..data.folders import find_files
from ..data.names import split_name, split_weight

# Options by which a run reads something of its own.
SOURCES = (
    *("model", "ref_model", "teacher", "dataset", "reward_funcs"),
    *("sampler", "advantage_estimator", "group_filter", "optim", "surrogate"),
    *("tools", "environment", "tool_parser", "chat_template", "sampler_order", "judge_rubric"),
)
WHOLE = 64 << 20  # bytes; of a larger file, parts are read
PARTS, PART = 64, 1 << 16
OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


def values_of(config: TrainConfig) -> list[str]:
    """Returns the values of the options that name something that the run reads, each once."""
    found: list[str] = []
    for name in SOURCES:
        value = getattr(config, name)
        found += value if isinstance(value, tuple) else [value or ""]
    return list(dict.fromkeys(value for value in found if value and not value.startswith(FROM_PYTHON)))


def digests(config: TrainConfig) -> dict[str, str]:
    """Returns value → digest of the files or folders that the options name, those that exist."""
    found = {value: digest(value) for value in values_of(config)}
    return {value: known for value, known in found.items() if known}


def digest(value: str) -> str:
    """Returns a digest of the content of the file or folder that an option names; "" where it names none.

    Names of folders above it, and dates, don't matter. Of files over 64 MiB, their size and 64 parts are read.
    """
    place, config = split_path(split_weight(split_name(value)[1])[0])
    path = Path(place)
    summary = hashlib.sha256()
    try:
        files = [path] if path.is_file() else _content(path, config)
        for file in files:
            name = "" if file == path else file.relative_to(path).as_posix()
            summary.update(f"{name}\0{file.stat().st_size}\0".encode())
            _read(file, summary)
    except OSError:
        return ""
    return summary.hexdigest() if files else ""


def _content(folder: Path, config: str) -> list[Path]:
    """Returns the files that are a model's, else those that hold a dataset's rows."""
    if not folder.is_dir():
        return []
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in OF_A_MODEL)
    try:
        splits = find_files(folder, config.removeprefix(":"), "").splits
    except ValueError:
        return []
    return sorted(file for files in splits.values() for file in files)


def _read(file: Path, summary: hashlib._Hash) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= WHOLE:
            while block := opened.read(1 << 20):
                summary.update(block)
            return
        for part in range(PARTS):
            opened.seek(part * (size - PART) // (PARTS - 1))
            summary.update(opened.read(PART))


def is_same_place(old: object, new: object) -> bool:
    """Tells whether two values of an option name the same path: `m12` and `m12/`, or a relative and an absolute one."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(is_same_place, old, new))
    if not (isinstance(old, str) and isinstance(new, str) and old and new):
        return old == new
    return old == new or resolved(old) == resolved(new)


def has_moved(old: object, new: object, known: Mapping[str, str]) -> bool:
    """Tells whether two values of an option name the same content at two places.

    Args:
        old: the checkpoint's value.
        new: the present value.
        known: value → digest, as the checkpoint has them; for one that it lacks, the old place is read.

    Returns:
        Whether both have the same digest.
    """
    if isinstance(old, tuple) and isinstance(new, tuple):
        pairs = list(zip(old, new, strict=False))
        return len(old) == len(new) and all(is_same_place(*p) or has_moved(*p, known) for p in pairs)
    if not (isinstance(old, str) and isinstance(new, str) and old and new):
        return False
    before = known.get(old) or digest(old)
    return split_path(old)[1] == split_path(new)[1] and bool(before) and before == digest(new)
