"""Finds the runs that are named: directories of runs, or directories that hold some."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

DEPTH = 2  # runs/NAME, and NAME/VARIANT/seed-N of a comparison


def is_run(folder: Path) -> bool:
    """Checks whether a directory is that of a run: it has its options or its metrics."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def find_runs(places: Sequence[Path]) -> dict[str, Path]:
    """Returns name → directory of the runs at `places`, in order. A place without any is a run that has yet to begin.

    Example: of `runs/`, which holds `demo` and `sweep/seed-1`, the names are "demo" and "sweep/seed-1".
    """
    found: dict[Path, str] = {}
    for place in places:
        runs = [place] if is_run(place) else sorted(_runs_below(place, place, DEPTH), key=_by_numbers)
        for run in runs or [place]:
            name = place.resolve().name if run == place else run.relative_to(place).as_posix()
            found.setdefault(run, name)
    names = list(found.values())
    return {name if names.count(name) == 1 else str(run): run for run, name in found.items()}


def _by_numbers(path: Path) -> list[str | int]:
    """Returns a key that sorts seed-2 before seed-10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def _runs_below(folder: Path, top: Path, depth: int) -> Iterator[Path]:
    """Yields the runs below a directory. A symbolic link that leads out of `top` isn't followed."""
    if not folder.is_dir():
        return
    for child in folder.iterdir():
        if child.name.startswith(".") or not child.is_dir():
            continue
        if child.is_symlink() and not child.resolve().is_relative_to(top.resolve()):
            continue
        if is_run(child):
            yield child
        elif depth > 1:
            yield from _runs_below(child, top, depth - 1)
