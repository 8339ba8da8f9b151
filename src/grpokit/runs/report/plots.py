"""Draws a panel of a run as inline SVG. Each kind of plot has one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from .colours import BLUE, INK, RED
from .data import Row, RunData, is_number
from .panels import PHASES, Line, Panel, describe, evaluation_lines
from .series import Floats, smooth, thin, trend_window
from .svg import STYLE, figure_svg

# Inches. A plot is drawn for the width at which it is shown, so that its text has the page's size: 72 points an inch.
SIZES = {"wide": (10.6, 3.1), "narrow": (4.7, 2.9), "normal": (4.7, 2.45), "small": (4.7, 1.9)}


class Key(NamedTuple):
    """An entry of a plot's legend. The page renders it, so it wraps and takes the width it needs.

    Example:
        >>> key = Key("pass@1, greedy", "#d55e00", "line")
    """

    label: str
    colour: str  # one of colours.COLOURS
    mark: Literal["line", "band", "area", "dot"]


def draw(panel: Panel, run: RunData, size: str = "") -> tuple[str, list[Key]]:
    """Returns the panel as an inline `<svg>` and its legend. `size` (a key of SIZES) replaces the panel's own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZES[size or panel.size], layout="constrained")
        keys = _DRAWERS[panel.kind](figure, panel, run)
        lowest = figure.axes[-1]
        lowest.set_xlabel("step")
        lowest.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 2.5, 5, 10]))
        name = f"{panel.key}-{size or panel.size}"
        return figure_svg(figure, name, describe(panel, run)), keys if len(keys) > 1 else []


# --------------------------------------------------------------------------- the kinds of plot


def _draw_lines(figure: Figure, panel: Panel, run: RunData) -> list[Key]:
    axes = figure.subplots()
    shown = [line for line in panel.lines if run.has(line.metric)]
    for line in shown:
        _series(axes, *run.metric(line.metric), line, panel.trend)
    _y_axis(axes, panel, [value for line in shown for value in run.metric(line.metric)[1]])
    return [Key(line.label, line.colour, "line") for line in shown]


def _draw_reward(figure: Figure, panel: Panel, run: RunData) -> list[Key]:
    """Draws the reward, the spread around it, and the comparable held-out figure."""
    axes = figure.subplots()
    keys = [Key(panel.lines[0].label, BLUE, "line")]
    rows = [row for row in run.steps if is_number(row.get("reward")) and is_number(row.get("reward_std"))]
    if len(rows) > 1:
        x, mean = thin([row["step"] for row in rows], _cells(rows, "reward"))
        _, spread = thin([row["step"] for row in rows], _cells(rows, "reward_std"))
        window = trend_window(len(x))  # smoothed like the line that it surrounds
        mean, spread = smooth(mean, window), smooth(spread, window)
        axes.fill_between(x, mean - spread, mean + spread, color=BLUE, alpha=0.14, linewidth=0)
        keys.append(Key("± standard deviation within a group", BLUE, "band"))
    _series(axes, *run.metric("reward"), panel.lines[0])
    evaluated = "eval/reward" if run.evaluation("eval/reward")[0] else "eval/pass@1"
    steps, values = run.evaluation(evaluated)
    if steps:
        axes.plot(steps, values, "D", color=RED, markersize=4.5, zorder=4)
        keys.append(Key("held-out reward" if evaluated == "eval/reward" else "held-out pass@1", RED, "dot"))
    return keys


def _draw_lengths(figure: Figure, panel: Panel, run: RunData) -> list[Key]:
    """Draws the mean length between the shortest and the longest, and below it the share that was cut off."""
    cut = run.metric("completions/clipped_ratio")
    rows = 2 if cut[0] else 1
    upper, *lower = np.atleast_1d(figure.subplots(rows, 1, sharex=True, height_ratios=(3, 1)[:rows]))
    keys = [Key("mean tokens", BLUE, "line")]
    low, high = run.metric("completions/min_length"), run.metric("completions/max_length")
    if len(low[0]) > 1 and low[0] == high[0]:
        x, shortest = thin(*low, "min")
        upper.fill_between(x, shortest, thin(*high, "max")[1], color=BLUE, alpha=0.14, linewidth=0)
        keys.append(Key("shortest to longest", BLUE, "band"))
    _series(upper, *run.metric("completions/mean_length"), panel.lines[0])
    upper.set_ylim(bottom=0)
    for axes in lower:
        x, share = thin(*cut)
        axes.fill_between(x, 0, share, color=RED, alpha=0.35, linewidth=0)
        axes.plot(x, share, color=RED, linewidth=1)
        axes.set_ylim(0, max(0.05, min(1.0, 1.15 * float(share.max()))))
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title("cut off at the limit", loc="left", fontsize=9, color=INK, pad=3)
    return keys


def _draw_times(figure: Figure, panel: Panel, run: RunData) -> list[Key]:
    """Draws the seconds of a step, stacked by phase. `other` is the rest."""
    axes = figure.subplots()
    rows = [row for row in run.steps if is_number(row.get("time/step"))]
    steps = [row["step"] for row in rows]
    phases = {name: np.nan_to_num(_cells(rows, f"time/{name}")) for name in PHASES if name != "other"}
    phases["other"] = np.maximum(0.0, _cells(rows, "time/step") - sum(phases.values()))
    total = sum(float(seconds.sum()) for seconds in phases.values())
    # A phase below half a percent would have a legend entry but no visible area.
    shown = {n: s for n, s in phases.items() if s.sum() > 0.005 * total} or {"other": phases["other"]}
    if len(rows) == 1:
        bottom = 0.0
        for name, height in shown.items():
            axes.bar(steps, height, 0.5, bottom=bottom, color=PHASES[name])
            bottom += float(height[0])
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    else:
        thinned = [thin(steps, height) for height in shown.values()]
        heights = [smooth(y, trend_window(len(y))) for _, y in thinned]
        x = thinned[0][0]
        axes.stackplot(x, heights, colors=[PHASES[name] for name in shown], linewidth=0, alpha=0.85)
        axes.set_xlim(x[0], x[-1])
    axes.set_ylabel("seconds")
    return [Key(name, PHASES[name], "area") for name in shown]


def _draw_evaluation(figure: Figure, panel: Panel, run: RunData) -> list[Key]:
    """Draws accuracy at each evaluation; see `evaluation_lines`."""
    axes = figure.subplots()
    shown = [line for line in evaluation_lines(panel, run) if run.evaluation(line.metric)[0]]
    for line in shown:
        steps, values = run.evaluation(line.metric)
        style = "o-" if len(steps) <= 40 else "-"
        axes.plot(*thin(steps, values), style, color=line.colour, markersize=4.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return [Key(line.label, line.colour, "line") for line in shown]


_DRAWERS: dict[str, Callable[[Figure, Panel, RunData], list[Key]]] = {
    "lines": _draw_lines,
    "reward": _draw_reward,
    "lengths": _draw_lengths,
    "times": _draw_times,
    "evaluation": _draw_evaluation,
}


# --------------------------------------------------------------------------- parts of a plot


def _series(
    axes: Axes, steps: Sequence[float], values: Sequence[float], line: Line, trend: bool = True
) -> None:
    """Draws the points of a series faintly under their rolling mean, or plainly if there are few."""
    x, y = thin(steps, values, line.reduce)
    window = trend_window(len(x)) if trend else 1
    if window == 1:
        axes.plot(x, y, "o-" if len(x) <= 15 else "-", markersize=3.5, color=line.colour)
        return
    axes.plot(x, y, color=line.colour, linewidth=0.8, alpha=0.3)
    axes.plot(x, smooth(y, window), color=line.colour)


def _y_axis(axes: Axes, panel: Panel, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and low * panel.log_over < high:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    elif panel.from_zero and low >= 0:
        # A series of zeros still gets an axis with a scale.
        axes.set_ylim(0, None if high > 0 else 0.01 if panel.percent else 1)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _cells(rows: Sequence[Row], name: str) -> Floats:
    """Returns a metric's values [len(rows)], NaN where there is none."""
    return np.array([row[name] if is_number(row.get(name)) else np.nan for row in rows], dtype=np.float64)
