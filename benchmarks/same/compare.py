"""Comparing what two runs wrote, byte by byte: the first difference, with its file, its line and its key."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMED = ("metrics.jsonl", "evaluations.jsonl")
RECORDS = (*TIMED, "completions.jsonl")
FINAL = "final"
LONGEST = 60  # characters of a value that are shown
ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """The first place where two runs differ: Difference("run/metrics.jsonl", "line 2, loss: 0.1 → 0.2")."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def compare(old: Path, new: Path, name: str, ignored: Sequence[str] = ()) -> Difference | None:
    """The first difference between two training runs, or two files, that messages call `name`.

    `ignored`: patterns of files in the runs that were meant to change.

    Only what the old one wrote under these names is compared; further files of the new one are no difference.
    Raises OSError or ValueError where the old one wrote nothing to compare.
    """
    if old.is_file():
        what = compare_files(old, new)
        return Difference(name, what) if what else None
    files = [*RECORDS, *(str(p.relative_to(old)) for p in sorted((old / FINAL).rglob("*")) if p.is_file())]
    if not (old / "metrics.jsonl").read_bytes() or len(files) == len(RECORDS):
        raise ValueError(f"{old}: has no metrics or no {FINAL}/, so there is nothing to compare")
    for file in files:
        if any(fnmatch.fnmatch(file, pattern) for pattern in ignored):
            continue
        what = compare_files(old / file, new / file)
        if what:
            return Difference(f"{name}/{file}", what)
    return None


def compare_files(old: Path, new: Path) -> str:
    """How two files differ first, or an empty string."""
    if not new.is_file():
        return ABSENT
    if old.suffix == ".jsonl":
        return compare_lines(old, new)
    if digest(old.read_bytes()) == digest(new.read_bytes()):
        return ""
    if old.suffix == ".safetensors":
        return compare_tensors(old, new)
    if old.suffix == ".json":
        return compare_values(json.loads(old.read_bytes()), json.loads(new.read_bytes()))
    return compare_text(old.read_bytes().splitlines(), new.read_bytes().splitlines())


# --------------------------------------------------------------------------- JSON


def compare_lines(old: Path, new: Path) -> str:
    """Compare files of one JSON object a line, those with times without them."""
    clean = untimed if old.name in TIMED else bytes
    pairs = itertools.zip_longest(old.read_bytes().splitlines(), new.read_bytes().splitlines())
    for number, (ours, theirs) in enumerate(pairs, 1):
        if ours is None or theirs is None:
            return f"line {number}: only the {'old' if theirs is None else 'new'} one has it"
        before, after = clean(ours), clean(theirs)
        if before != after:
            values = [json.loads(side, parse_float=str, parse_int=str) for side in (before, after)]
            if old.name in RECORDS:  # figures and fields that only the new version has are no difference
                values[1] = {key: value for key, value in values[1].items() if key in values[0]}
            if values[0] != values[1] or old.name not in RECORDS:
                return f"line {number}, {compare_values(*values)}"
    return ""


def untimed(line: bytes) -> bytes:
    """One line without what only time decides; the other bytes stay as they are."""
    return re.sub(rb',\s*"((?:time|memory|tflops|mfu)/[^"]*|tokens_per_second[^"]*)"\s*:[^,}]*', b"", line)


def compare_values(old: Any, new: Any) -> str:
    """Name the first key at which two JSON values differ, with both values."""
    found = next(differences(old, new, ""), None)
    if found is None:
        return "the same values, in another order or spelling"
    key, before, after = found
    return f"{key}: {shown(before)} → {shown(after)}"


def differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old, new) for each leaf that differs; keys of nested values are joined by dots."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name, ABSENT), new.get(name, ABSENT), f"{key}.{name}".strip("."))
    elif isinstance(old, list) and isinstance(new, list):
        for place, (a, b) in enumerate(itertools.zip_longest(old, new, fillvalue=ABSENT)):
            yield from differences(a, b, f"{key}[{place}]")
    elif old != new:
        yield key, old, new


def shown(value: Any) -> str:
    """A value as text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# --------------------------------------------------------------------------- other files


def compare_tensors(old: Path, new: Path) -> str:
    """Name the first tensor of two safetensors files that differs, and the number of those that do."""
    ours, theirs = tensors(old), tensors(new)
    changed = [name for name in ours if ours[name] != theirs.get(name)]
    added = [name for name in theirs if name not in ours]
    if not changed and not added:
        return "the same tensors, with other metadata or in another order"
    first = (changed or added)[0]
    before, after = (
        " ".join([str(side[first][0]), side[first][1][:8]]) if first in side else ABSENT
        for side in (ours, theirs)
    )
    return f"tensor {first}: {before} → {after} ({len(changed)} of {len(ours)} differ, {len(added)} are new)"


def tensors(file: Path) -> dict[str, tuple[str, str]]:
    """Read a safetensors file as name → (type and shape, digest of its bytes)."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        shape = "×".join(map(str, entry["shape"]))
        found[name] = (f"{entry['dtype']} {shape}", digest(content[start + begin : start + end]))
    return found


def compare_text(old: list[bytes], new: list[bytes]) -> str:
    """Name the first line that differs."""
    for number, (ours, theirs) in enumerate(itertools.zip_longest(old, new, fillvalue=b""), 1):
        if ours != theirs:
            before, after = (shown(side.decode(errors="replace")) for side in (ours, theirs))
            return f"line {number}: {before} → {after}"
    return "other ends of lines"


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()
