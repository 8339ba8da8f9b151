"""Lets reward functions read the run's state and log with a step: TRL's `trainer_state`, `log_metric` and `log_extra`.

`log_count` is grpokit's own: its numbers are summed, where `log_metric` averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types import Metric, Metrics

OF_TRL = ("trainer_state", "log_metric", "log_extra")
REPORTED = (*OF_TRL, "log_count")  # the last only where a function names it


@dataclass(frozen=True)
class TrainerState:
    """What TRL's reward functions read of the run.

    Example:
        >>> state = TrainerState(global_step=30, max_steps=60)
        >>> state.global_step / state.max_steps
        0.5
    """

    global_step: int = 0  # steps done
    max_steps: int = 0  # 0: there is no training, as in `grpokit eval`
    epoch: float | None = None  # passes over the data; None where its length is not known
    log_history: list[dict[str, float]] = field(default_factory=list)  # always empty


class Report:
    """Collects what the reward functions log in one round of scoring.

    Args:
        state: what functions get as `trainer_state`.
        is_taken: tells whether a name is one of the run's own metrics.

    Attributes:
        metrics: the logged metrics by name, joined over ranks and rounds like any other metric.
        extras: column → one value for each completion.

    Example:
        >>> report, notes = Report(), Notes()
        >>> notes.log_metric("tokens", 2), notes.log_metric("tokens", 4), notes.log_extra("parsed", ["7", None])
        (None, None, None)
        >>> report.take("f", notes, [0, 1], 2)
        >>> report.metrics["tokens"].value, report.extras
        (3.0, {'parsed': ['7', None]})
    """

    def __init__(
        self, state: TrainerState | None = None, is_taken: Callable[[str], bool] = lambda name: False
    ) -> None:
        self.state, self.is_taken = state or TrainerState(), is_taken
        self.metrics: Metrics = {}
        self.extras: dict[str, list[Any]] = {}
        self._logged: dict[str, set[int]] = {}  # column → the completions of which a function has logged it

    def take(self, name: str, notes: Notes, rows: Sequence[int], size: int) -> None:
        """Takes what the function `name` has logged. A call's number counts once for each of its completions.

        So a metric agrees with the reward, whether the completions come in one call or in calls of unequal size.

        Args:
            name: the function's name.
            notes: what it has logged.
            rows: the completions that it was called with.
            size: all completions; the others have no value.

        Raises:
            ValueError: a column doesn't have one value for each completion, or another function has logged it of the same
                completions. Functions with different routes may share a column.
        """
        means = [
            (n, Metric.share(math.fsum(values) / len(values) * len(rows), len(rows)))
            for n, values in notes.means.items()
        ]
        counts = [
            (n, Metric.sum(torch.tensor([math.fsum(values)], dtype=torch.float64)))
            for n, values in notes.counts.items()
        ]
        self._join([*means, *counts])
        for column, values in notes.extras.items():
            if len(values) != len(rows):
                raise ValueError(
                    f"logged {len(values)} values as {column!r}; expected {len(rows)}, one for each completion"
                )
            logged = self._logged.setdefault(column, set())
            if not logged.isdisjoint(rows):
                raise ValueError(f"logged {column!r}, as another function has of the same rows; rename one")
            logged.update(rows)
            self.extras.setdefault(column, [None] * size)
            for row, value in zip(rows, values, strict=True):
                self.extras[column][row] = value

    def add(self, later: Report) -> None:
        """Adds the metrics of a later round of the same scoring.

        Raises:
            ValueError: a name is logged by `log_metric` in one and by `log_count` in the other.
        """
        self._join(list(later.metrics.items()))

    def _join(self, metrics: Sequence[tuple[str, Metric]]) -> None:
        for name, value in metrics:
            if name in self.metrics and self.metrics[name].kind != value.kind:
                raise ValueError(f"logged {name!r} by log_metric and by log_count; rename one")
            self.metrics[name] = self.metrics[name] + value if name in self.metrics else value


class Notes:
    """Collects what one function logs in one call. The function gets its methods, and may call them on any thread.

    Args:
        is_taken: tells whether a name is one of the run's own metrics.
    """

    def __init__(self, is_taken: Callable[[str], bool] = lambda name: False) -> None:
        self.is_taken = is_taken
        self.means: dict[str, list[float]] = {}
        self.counts: dict[str, list[float]] = {}
        self.extras: dict[str, list[Any]] = {}

    def __deepcopy__(self, memo: Any) -> Notes:
        """Returns itself: functions get copies of what they may edit, but all of them log here."""
        return self

    def log_metric(self, name: str, value: float) -> None:
        """Logs a number, which is averaged over the completions of the step's calls. NaN is left out.

        Raises:
            ValueError: the value is no finite number, or the name is one of the run's own metrics.
        """
        self._add(self.means, "log_metric", name, value)

    def log_count(self, name: str, value: float = 1) -> None:
        """Logs a number, which is summed over the step's calls. NaN is left out. Raises ValueError for anything else."""
        self._add(self.counts, "log_count", name, value)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Logs a value for each completion of the call. Values that JSON doesn't have are written as text."""
        plain = values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)
        self.extras.setdefault(str(column), []).extend(map(_plain, plain))

    def _add(self, where: dict[str, list[float]], by: str, name: str, value: Any) -> None:
        if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, Real) or math.isinf(value):
            raise ValueError(f"{by}({name!r}, {value!r}): expected a finite number")
        if self.is_taken(str(name)):
            raise ValueError(f"{by}({name!r}, ...): is one of the run's own metrics; rename it")
        if not math.isnan(value):
            where.setdefault(str(name), []).append(float(value))


def _plain(value: Any) -> Any:
    """Returns a value as JSON keeps it: text, a finite number, true, false or null."""
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
