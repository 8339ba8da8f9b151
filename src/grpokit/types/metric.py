"""An additive quantity that is measured: slices and ranks join it, and its value is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

MetricKind = Literal["mean", "sum", "max", "min", "derived"]


def _ess(s: Tensor, s2: Tensor, n: Tensor) -> Tensor:
    return s * s / (n * s2)


def _std(s: Tensor, s2: Tensor, n: Tensor) -> Tensor:
    return ((s2 - s * s / n) / (n - 1)).clamp(min=0).sqrt()


FORMULAS = {"ess": _ess, "std": _std}  # functions of (Σx, Σx², n)


@dataclass(frozen=True, eq=False)
class Metric:
    """An additive quantity. `a + b` joins slices or ranks; `value` is computed once, when the metric is shown.

    The kinds are `mean` (sum and count), `sum`, `max`, `min` and `derived` (a formula of Σx, Σx² and n, such as the
    effective sample size). No kind stores an average, so no cut of the batch changes the value.

    Example:
        >>> (Metric.mean(torch.tensor([1.0, 2.0])) + Metric.mean(torch.tensor([6.0]))).value
        3.0
    """

    kind: MetricKind
    parts: tuple[Tensor, ...]  # float64 scalars
    formula: str = ""

    @staticmethod
    def mean(values: Tensor) -> Metric:
        """Returns the mean over all entries of `values` (any shape)."""
        return Metric("mean", (values.detach().sum(dtype=torch.float64), _count(values)))

    @staticmethod
    def share(part: float, whole: float) -> Metric:
        """Returns the mean `part / whole` of two totals that are already known."""
        return Metric(
            "mean", (torch.tensor(part, dtype=torch.float64), torch.tensor(whole, dtype=torch.float64))
        )

    @staticmethod
    def sum(values: Tensor) -> Metric:
        """Returns the sum over all entries of `values` (any shape)."""
        return Metric("sum", (values.detach().sum(dtype=torch.float64),))

    @staticmethod
    def max(values: Tensor) -> Metric:
        """Returns the largest entry of `values` (any shape); minus infinity when there is none."""
        floor = torch.full((1,), -torch.inf, dtype=torch.float64, device=values.device)
        return Metric("max", (torch.cat([floor, values.detach().double().flatten()]).amax(),))

    @staticmethod
    def min(values: Tensor) -> Metric:
        """Returns the smallest entry of `values` (any shape); infinity when there is none."""
        return Metric("min", tuple(-part for part in Metric.max(-values).parts))

    @staticmethod
    def derived(formula: str, values: Tensor) -> Metric:
        """Returns `formula` (a key of FORMULAS) of Σx, Σx² and n over all entries of `values`."""
        x = values.detach().double()
        return Metric("derived", (x.sum(), (x * x).sum(), _count(values)), formula)

    def __add__(self, other: Metric) -> Metric:
        if (self.kind, self.formula) != (other.kind, other.formula):
            raise ValueError(
                f"cannot join metrics of kinds {self.kind}/{self.formula} and {other.kind}/{other.formula}"
            )
        join = {"max": torch.maximum, "min": torch.minimum}.get(self.kind, torch.add)
        return Metric(
            self.kind, tuple(join(a, b) for a, b in zip(self.parts, other.parts, strict=True)), self.formula
        )

    @property
    def value(self) -> float:
        """Returns the number to show; NaN when nothing was measured."""
        if self.kind == "sum":
            return float(self.parts[0])
        if self.kind in ("max", "min"):
            return float(self.parts[0]) if torch.isfinite(self.parts[0]) else float("nan")
        if self.kind == "mean":
            return float(self.parts[0] / self.parts[1])
        return float(FORMULAS[self.formula](*self.parts))

    def __float__(self) -> float:
        return self.value

    def to_json(self) -> list[Any]:
        """Returns plain JSON values, for a file or another process. `from_json` restores the same numbers."""
        return [self.kind, self.formula, [float(part) for part in self.parts]]

    @staticmethod
    def from_json(written: list[Any]) -> Metric:
        """Restores a metric that `to_json` wrote."""
        kind, formula, parts = written
        return Metric(kind, tuple(torch.tensor(part, dtype=torch.float64) for part in parts), formula)


def _count(values: Tensor) -> Tensor:
    return torch.tensor(values.numel(), dtype=torch.float64, device=values.device)


Metrics = dict[str, Metric]


def join_metrics(a: Mapping[str, Metric], b: Mapping[str, Metric]) -> Metrics:
    """Joins the metrics of two slices. A name that only one of them has keeps its metric.

    Example:
        >>> one, two = ({"n": Metric.sum(torch.ones(k))} for k in (1, 2))
        >>> join_metrics(one, two)["n"].value
        3.0
    """
    return {**a, **b, **{name: a[name] + b[name] for name in a.keys() & b.keys()}}
