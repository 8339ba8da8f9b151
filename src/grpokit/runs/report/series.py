"""Makes long series short enough to draw: averages over several steps, and a rolling mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 400  # more cannot be told apart at the width of a plot
TREND_FROM = 30  # points from which on a rolling mean is drawn

_REDUCE = {"mean": np.add, "max": np.maximum, "min": np.minimum}


def thin(
    x: Sequence[float] | Floats, y: Sequence[float] | Floats, reduce: Literal["mean", "max", "min"] = "mean"
) -> tuple[Floats, Floats]:
    """Returns at most MOST_POINTS points [M]. Each replaces several consecutive points: their mean x, and `reduce` of their y.

    All replace equally many points, except for the last one. A short series is returned as it is.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    length = -(-len(xs) // MOST_POINTS)
    if length <= 1:
        return xs, ys
    starts = np.arange(0, len(xs), length)
    sizes = np.diff(np.append(starts, len(xs)))
    means = np.add.reduceat(xs, starts) / sizes
    reduced = _REDUCE[reduce].reduceat(ys, starts)
    return means, reduced / sizes if reduce == "mean" else reduced


def trend_window(points: int) -> int:
    """Returns the (odd) window of the rolling mean over a series of `points`; 1 where none is drawn."""
    return 1 if points < TREND_FROM else max(5, points // 15 | 1)


def smooth(y: Floats, window: int) -> Floats:
    """Computes a centred rolling mean [M] → [M], with a window that shrinks towards the ends.

    It shrinks on both sides, so it does not lag, but to no less than a third. Shrunk to one point, it would end the line in
    one step's noise.
    """
    half = window // 2
    at = np.arange(len(y))
    reach = np.clip(np.minimum(at, at[::-1]), half // 3, half)
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach, len(y) - 1)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    return (sums[last + 1] - sums[first]) / (last + 1 - first)
