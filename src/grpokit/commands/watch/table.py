"""The numbers of a run by step, in columns: a long run's metrics take eight bytes each."""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ...runs.report.data import RunData, is_number
from .follow import GrowingFile


class Table(Sequence[Mapping[str, float]]):
    """A file of JSON lines as columns. As a sequence, it gives a row at a time, with the columns that the row has.

    A row whose step is not after the last one supersedes that step and all later ones: the run went back to a checkpoint.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.file = GrowingFile(folder, name)
        self.steps = array("q")
        self.columns: dict[str, array[float]] = {}
        self.problems: list[str] = []
        self.cuts = 0  # how often rows were removed

    def refresh(self) -> None:
        """Reads what the run has written since the last time."""
        if self.file.is_rewritten():
            self._keep(0)
            self.problems.clear()
        for offset, line in self.file.new_lines():
            if line.strip():
                self._read(offset, line)

    def _read(self, offset: int, line: bytes) -> None:
        where = f"{self.file.name}, byte {offset:,}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
            self.problems.append(f"{where}: the line is left out, because it is not JSON ({error})")
            return
        step = row.get("step", self.steps[-1] + 1 if self.steps else 0) if isinstance(row, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 63:
            self.problems.append(
                f"{where}: the line is left out; expected an object whose step is a number from 0"
            )
            return
        self.add(step, row)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Appends a row, in place of rows of this step and later ones."""
        if self.steps and step <= self.steps[-1]:
            self._keep(bisect_left(self.steps, step))
        missing = array("d", [math.nan])
        for name in row.keys() - self.columns.keys() - {"step"}:
            if is_number(row[name]):
                self.columns[name] = missing * len(self.steps)
        self.steps.append(step)
        for name, column in self.columns.items():
            value = row.get(name)
            column.append(float(value) if value is not None and is_number(value) else math.nan)

    def _keep(self, count: int) -> None:
        """Removes all rows but the first `count`."""
        self.cuts += 1
        del self.steps[count:]
        for column in self.columns.values():
            del column[count:]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a column, where it is finite."""
        if name not in self.columns:
            return [], []
        steps, values = np.array(self.steps), np.array(self.columns[name])
        known = np.isfinite(values)
        return steps[known].tolist(), values[known].tolist()

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, float]: ...
    @overload
    def __getitem__(self, place: slice) -> list[Mapping[str, float]]: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, float] | list[Mapping[str, float]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        cells = {name: column[place] for name, column in self.columns.items()}
        return {"step": self.steps[place], **{n: value for n, value in cells.items() if math.isfinite(value)}}


@dataclass(frozen=True)
class TableRun(RunData):
    """A run whose metrics are in tables, for the report's panels and cards."""

    table: Table

    def metric(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a metric, where it exists and is finite."""
        return self.table.series(name)

    def evaluation(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a figure of the evaluations, which a run may also have in its metrics."""
        found = [(row["step"], row[name]) for row in self.evaluations if name in row]
        return [step for step, _ in found], [value for _, value in found]

    def has(self, name: str) -> bool:
        """Checks whether a metric has at least one finite value."""
        return any(map(math.isfinite, self.table.columns.get(name, ())))

    def names(self) -> set[str]:
        """Returns the names of all metrics."""
        return set(self.table.columns)

    def num_done(self) -> int:
        """Returns the number of steps that are done."""
        return len(self.table)


def table_run(folder: Path, config: Mapping[str, Any], table: Table, figures: Table) -> TableRun:
    """Returns a run for the report's panels and cards.

    Args:
        folder: the run's directory.
        config: its options.
        table: its metrics, which may have figures of evaluations too.
        figures: its evaluations.
    """
    rows: dict[int, dict[str, float]] = {}
    for source in (table, figures):
        for name in source.columns:
            if name.startswith("eval/"):
                for step, value in zip(*source.series(name), strict=True):
                    rows.setdefault(step, {"step": step})[name] = value
    return TableRun(folder, config, (), tuple(rows[step] for step in sorted(rows)), (), table)
