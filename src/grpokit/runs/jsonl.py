"""A file of JSON lines that a run appends to, one object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class JsonLines:
    """A file with one JSON object per line, flushed after each. A resumed run drops the lines after its step."""

    def __init__(self, path: Path, last_step: int, writes: bool = True) -> None:
        """Keeps the lines whose `step` is at most `last_step` (a torn last line is dropped), and appends after them.

        With several ranks, only one `writes`. For the others the file does not exist.
        """
        self.path, self.file, self.writes = path, None, writes
        if not writes:
            return
        kept = [line for line in _lines(path) if _step_of(line) <= last_step]
        if kept or path.exists():
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one object. Raises OSError naming the file."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(f"{self.path}: could not be written: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            with suppress(OSError):  # a failed line has raised its own error already
                self.file.close()

    def rows(self) -> list[dict[str, Any]]:
        """Returns all objects in the file."""
        return [json.loads(line) for line in _lines(self.path)]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line for line in file if line.endswith("\n")]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
