"""Draws the curves of a comparison as inline SVG: one plot for a few variants, a small one each for many."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...runs.report.colours import AMBER, BLUE, GREEN, GREY, PINK, RED
from ...runs.report.plots import SIZES, Key
from ...runs.report.series import Floats, smooth, thin, trend_window
from ...runs.report.svg import STYLE, figure_svg
from .outcome import VariantRuns

PALETTE = (BLUE, RED, GREEN, PINK, AMBER, GREY)
FEW = len(PALETTE)  # more variants get a plot each
SMALL = (2.5, 1.5)  # inches
MOST_SMALL_POINTS = 80

Curve = tuple[Floats, Floats, Floats, Floats]  # steps, mean over seeds, lowest seed, highest seed


def curve_of(variant: VariantRuns, metric: str, is_noisy: bool) -> Curve | None:
    """Returns a variant's curve over the steps that all its seeds have; None where there are none.

    Args:
        variant: the variant.
        metric: a metric of the steps, or a figure of the evaluations.
        is_noisy: whether to draw a rolling mean.
    """
    columns = [dict(zip(*series, strict=True)) for series in variant.values(metric)]
    steps = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
    if not steps:
        return None
    table = np.array([[column[step] for step in steps] for column in columns])  # [seeds, steps]
    thinned = [thin(steps, row) for row in table]
    x, rows = thinned[0][0], np.array([y for _, y in thinned])
    if is_noisy:
        rows = np.array([smooth(row, trend_window(len(x))) for row in rows])
    return x, rows.mean(0), rows.min(0), rows.max(0)


def draw_together(
    curves: Sequence[tuple[str, str, Curve]], key: str, size: str, label: str
) -> tuple[str, list[Key]]:
    """Draws the curves of a few variants into one plot.

    Args:
        curves: (name, colour, curve) of each variant.
        key: prefix of the plot's ids.
        size: a key of SIZES.
        label: what the plot shows, for readers who cannot see it.

    Returns:
        The `<svg>`, and its legend.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZES[size], layout="constrained")
        axes = figure.subplots()
        for _, colour, curve in curves:
            _draw(axes, curve, colour)
        _step_axis(axes, 7)
        axes.set_xlabel("step")
        return figure_svg(figure, f"{key}-{size}", label), [
            Key(name, colour, "line") for name, colour, _ in curves
        ]


def draw_apart(curves: Sequence[tuple[str, Curve]], key: str, place: int, label: str) -> str:
    """Draws one curve of many: its own over the mean of all variants in grey, on axes that all plots share.

    Args:
        curves: (name, curve) of every variant.
        key: prefix of the plot's ids.
        place: which one to draw.
        label: what the plot shows, for readers who cannot see it.
    """
    lows, highs = [curve[2].min() for _, curve in curves], [curve[3].max() for _, curve in curves]
    margin = 0.04 * (max(highs) - min(lows) or 1.0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.subplots()
        shared = _mean_curve([curve for _, curve in curves])
        if shared is not None:
            axes.plot(*shared, color=GREY, linewidth=1.2, alpha=0.8)
        _draw(axes, _fewer(curves[place][1]), BLUE)
        axes.set_ylim(min(lows) - margin, max(highs) + margin)
        _step_axis(axes, 4)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        return figure_svg(figure, f"{key}-{place}", label)


def _draw(axes: Axes, curve: Curve, colour: str) -> None:
    x, mean, low, high = curve
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(x, mean, "o-" if len(x) <= 15 else "-", markersize=3.0, color=colour)


def _step_axis(axes: Axes, ticks: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))


def _mean_curve(curves: Sequence[Curve]) -> tuple[Floats, Floats] | None:
    """Returns the mean over the variants at the steps that all have."""
    columns = [dict(zip(curve[0], curve[1], strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    if not steps:
        return None
    x = np.array(steps, dtype=np.float64)
    y = np.array([[column[step] for step in steps] for column in columns], dtype=np.float64).mean(0)
    every = -(-len(x) // MOST_SMALL_POINTS)
    return x[::every], y[::every]


def _fewer(curve: Curve) -> Curve:
    """Returns fewer points, which a small plot cannot show anyway."""
    every = -(-len(curve[0]) // MOST_SMALL_POINTS)
    return curve[0][::every], curve[1][::every], curve[2][::every], curve[3][::every]
