"""The rows of a run that the rules of advice look at."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

WINDOW = 10  # steps whose mean a rule looks at: a single step is noisy
KEPT = 6 * WINDOW  # rows that are kept besides the first ones


@dataclass
class History:
    """The rows of a run that rules look at: its first ones and its last ones. Example: `History({"max_steps": 100})`"""

    config: Row
    first: list[Row] = field(default_factory=list)
    last: deque[Row] = field(default_factory=lambda: deque(maxlen=KEPT))
    evaluations: list[Row] = field(default_factory=list)
    count: int = 0

    def add(self, row: Row) -> None:
        """Adds the metrics of one more step."""
        self.count += 1
        if len(self.first) < WINDOW:
            self.first.append(row)
        self.last.append(row)

    def values(self, name: str, count: int = WINDOW, skipping: int = 0) -> list[float]:
        """Returns a metric's finite values in the `count` steps before the last `skipping` ones; [] if there are fewer steps."""
        rows = list(self.last)[: len(self.last) - skipping]
        return numbers(rows[-count:], name) if len(rows) >= count else []

    def mean(self, name: str, count: int = WINDOW, skipping: int = 0) -> float | None:
        """Returns the mean of `values`; None where there are none."""
        found = self.values(name, count, skipping)
        return statistics.fmean(found) if found else None

    def start(self, name: str) -> float | None:
        """Returns the mean over the first steps, once there are twice as many; None before."""
        found = numbers(self.first, name) if self.count >= 2 * WINDOW else []
        return statistics.fmean(found) if found else None

    def rises(self, name: str) -> bool:
        """Tells whether the mean of the last steps is above that of the steps before by more than two standard errors."""
        new, old = self.values(name), self.values(name, skipping=WINDOW)
        if len(new) < 2 or len(old) < 2:
            return True  # too early to say that it doesn't
        error = math.sqrt(statistics.variance(new) / len(new) + statistics.variance(old) / len(old))
        return statistics.fmean(new) - statistics.fmean(old) > 2 * error


def numbers(rows: Sequence[Row], name: str) -> list[float]:
    """Returns the finite values of a metric."""
    found = [row.get(name) for row in rows]
    return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]
