"""The rows of a run that the rules of advice look at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

WINDOW = 10  # steps whose mean a rule looks at: a single step is noisy
KEPT = 3 * WINDOW  # rows that are kept besides the first ones
POINTS = 64  # points of a trend
FEWEST = 8  # points that a slope is fitted to


@dataclass
class Trend:
    """A metric over the whole run in a bounded number of points: means of as many steps as it takes.

    Example:
        >>> trend = Trend()
        >>> for step in range(100):
        ...     trend.add(0.01 * step)
        >>> trend.slope() > 2
        True
    """

    points: list[float] = field(default_factory=list)
    size: int = 1  # steps of a point
    pending: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Adds the value of one more step."""
        self.pending.append(value)
        if len(self.pending) < self.size:
            return
        self.points.append(statistics.fmean(self.pending))
        self.pending.clear()
        if len(self.points) == 2 * POINTS:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self.size *= 2

    def slope(self) -> float | None:
        """Returns the slope of the last third of the run over its standard error (least squares); None if it is too early."""
        last = self.points[-max(FEWEST, len(self.points) // 3) :]
        if len(last) < FEWEST:
            return None
        fit = statistics.linear_regression(range(len(last)), last)
        errors = [y - fit.intercept - fit.slope * x for x, y in enumerate(last)]
        spread = math.sqrt(sum(e * e for e in errors) / (len(last) - 2))
        width = math.sqrt(sum((x - (len(last) - 1) / 2) ** 2 for x in range(len(last))))
        if spread == 0:
            return math.copysign(math.inf, fit.slope) if fit.slope else 0.0
        return fit.slope * width / spread


@dataclass
class History:
    """The rows of a run that rules look at: its first ones and its last ones. Example: `History({"max_steps": 100})`"""

    config: Row
    first: list[Row] = field(default_factory=list)
    last: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    reward: Trend = field(default_factory=Trend)
    best: float | None = None  # the highest mean reward of WINDOW steps
    count: int = 0

    def add(self, row: Row) -> None:
        """Adds the metrics of one more step."""
        self.count += 1
        if len(self.first) < WINDOW:
            self.first.append(row)
        self.last = [*self.last[1 - KEPT :], row]
        for value in numbers([row], "reward"):
            self.reward.add(value)
            now = self.mean("reward")
            if now is not None:
                self.best = now if self.best is None else max(self.best, now)

    def values(self, name: str, count: int = WINDOW) -> list[float]:
        """Returns a metric's finite values in the last `count` steps; [] if there are fewer steps."""
        return numbers(self.last[-count:], name) if len(self.last) >= count else []

    def mean(self, name: str) -> float | None:
        """Returns the mean over the last steps; None where there are no values."""
        found = self.values(name)
        return statistics.fmean(found) if found else None

    def start(self, name: str) -> float | None:
        """Returns the mean over the first steps, once there are twice as many; None before."""
        found = numbers(self.first, name) if self.count >= 2 * WINDOW else []
        return statistics.fmean(found) if found else None

    def noise(self, name: str) -> float:
        """Returns the standard error of a difference of two such means, by the spread of the last 2 · WINDOW steps."""
        found = self.values(name, 2 * WINDOW)
        return statistics.stdev(found) * math.sqrt(2 / WINDOW) if len(found) > 1 else math.inf

    def has_risen(self) -> bool:
        """Tells whether the reward is above that of the run's beginning by more than two standard errors, or still rises."""
        before, now = self.start("reward"), self.mean("reward")
        if before is None or now is None:
            return True  # too early to say that it hasn't
        return now - before > 2 * self.noise("reward") or self.is_rising()

    def is_rising(self) -> bool:
        """Tells whether the reward rises over the last third of the run: its slope is above two standard errors."""
        slope = self.reward.slope()
        return slope is None or slope > 2


def numbers(rows: Sequence[Row], name: str) -> list[float]:
    """Returns the finite values of a metric."""
    found = [row.get(name) for row in rows]
    return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]
