"""Where each step's lines are in completions.jsonl. Lines are parsed when a step is asked for, and never all at once."""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

from .follow import GrowingFile

STEP = re.compile(rb'^\{"step": ?(\d{1,18}),')  # how a run begins each line


class CompletionIndex:
    """The step, the offset and the length of each line, in the order of the steps.

    Example: `CompletionIndex(Path("runs/demo")).groups(12)` has the recorded groups of step 12.
    """

    def __init__(self, folder: Path) -> None:
        self.file = GrowingFile(folder, "completions.jsonl")
        self.lines = array("q"), array("q"), array("q")  # steps, offsets, lengths
        self.problems: list[str] = []

    def refresh(self) -> None:
        """Adds the lines that the run has written since the last time."""
        if self.file.is_rewritten():
            self._keep(0)
            self.problems.clear()
        for offset, line in self.file.new_lines():
            step = self._step_of(offset, line)
            if step is None:
                continue
            steps = self.lines[0]
            if steps and step < steps[-1]:  # the run went back to a checkpoint
                self._keep(bisect_left(steps, step))
            for column, value in zip(self.lines, (step, offset, len(line)), strict=True):
                column.append(value)

    def _keep(self, count: int) -> None:
        for column in self.lines:
            del column[count:]

    def _step_of(self, offset: int, line: bytes) -> int | None:
        """Returns the step of a line, None where it has none."""
        found = STEP.match(line)
        if found:
            return int(found[1])
        row = self._parse(offset, line)
        step = row.get("step") if row else None
        return step if isinstance(step, int) and 0 <= step < 1 << 63 else None

    def _parse(self, offset: int, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
            where = f"{self.file.name}, byte {offset:,}"
            said = f"{where}: the line is left out, because it is not JSON ({error})"
            self.problems += [] if said in self.problems else [said]
            return None
        return row if isinstance(row, dict) else None

    def steps(self) -> list[int]:
        """Returns the steps that have completions, in order."""
        return sorted(set(self.lines[0]))

    def groups(self, step: int) -> list[dict[str, Any]]:
        """Reads and returns the groups of a step."""
        steps, offsets, lengths = self.lines
        places = range(bisect_left(steps, step), bisect_right(steps, step))
        rows = (self._parse(offsets[i], self.file.read_line(offsets[i], lengths[i])) for i in places)
        return [row for row in rows if row is not None]
