"""The report's panels as data: each line's points, at most `MOST` of them, its extremes among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...runs.report.colours import BLUE, COLOURS, RED
from ...runs.report.panels import PHASES, REWARD, Panel, evaluation_lines, panels_of
from ...runs.report.series import thin
from .table import TableRun

MOST = 800  # points of a line; more can't be told apart at the width of a plot

Data = dict[str, Any]


def places_to_keep(values: Sequence[float], most: int = MOST) -> list[int]:
    """Returns the places of at most `most` values: the first, the last, and the extremes of equal parts between.

    Example:
        >>> places_to_keep([1, 5, 2, 0, 3, 3], most=4)
        [0, 1, 3, 5]
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    parts = max(1, (most - 2) // 2)
    size = -(-count // parts)
    padded = np.pad(np.asarray(values, dtype=np.float64), (0, parts * size - count), mode="edge")
    table = padded.reshape(parts, size)
    starts = np.arange(parts) * size
    extremes = np.concatenate([starts + table.argmin(1), starts + table.argmax(1)])
    return sorted({0, count - 1, *np.minimum(extremes, count - 1).tolist()})


def rounded(values: Sequence[float]) -> list[float]:
    """Returns the values with five digits: more can't be seen, and a page with many curves stays small."""
    return [float(f"{value:.5g}") for value in values]


def line(label: str, colour: str, steps: Sequence[int], values: Sequence[float], most: int = MOST) -> Data:
    """Returns a line of a plot.

    Args:
        label: its name in the legend.
        colour: one of colours.COLOURS.
        steps: the steps.
        values: the value at each.
        most: the most points to keep.
    """
    kept = places_to_keep(values, most)
    return {
        "label": label,
        "colour": COLOURS[colour],
        "x": [steps[i] for i in kept],
        "y": rounded([values[i] for i in kept]),
    }


def panels(run: TableRun, most: int = MOST) -> list[Data]:
    """Returns the run's panels, the reward's first."""
    chosen = ([REWARD] if run.has("reward") else []) + panels_of(run)
    return [data for panel in chosen for data in _KINDS[panel.kind](panel, run, most) if data["lines"]]


def _plot(panel: Panel, lines: list[Data], **changes: Any) -> Data:
    return {
        "key": panel.key,
        "title": panel.title,
        "caption": panel.caption,
        "percent": panel.percent,
        "fromZero": panel.from_zero,
        "trend": panel.trend,
        "logOver": panel.log_over,  # infinite: null
        "kind": "lines",
        "lines": lines,
    } | changes


def _lines(panel: Panel, run: TableRun, most: int) -> list[Data]:
    shown = [entry for entry in panel.lines if run.has(entry.metric)]
    return [_plot(panel, [line(s.label, s.colour, *run.metric(s.metric), most) for s in shown])]


def _reward(panel: Panel, run: TableRun, most: int) -> list[Data]:
    """The reward, the spread within a group around it, and the comparable held-out figure."""
    steps, values = run.metric("reward")
    mean = line(panel.lines[0].label, BLUE, steps, values, most)
    spread = dict(zip(*run.metric("reward_std"), strict=True))
    if spread:
        pairs = [(y, spread.get(x, 0.0)) for x, y in zip(mean["x"], mean["y"], strict=True)]
        mean |= {
            "low": rounded([y - s for y, s in pairs]),
            "high": rounded([y + s for y, s in pairs]),
            "band": "± standard deviation within a group",
        }
    evaluated = "eval/reward" if run.evaluation("eval/reward")[0] else "eval/pass@1"
    held_out = run.evaluation(evaluated)
    dots = (
        [line(f"held-out {'reward' if evaluated == 'eval/reward' else 'pass@1'}", RED, *held_out, most)]
        if held_out[0]
        else []
    )
    return [_plot(panel, [mean, *({**entry, "mark": "dots"} for entry in dots)])]


def _lengths(panel: Panel, run: TableRun, most: int) -> list[Data]:
    """The mean length between the shortest and the longest; and in a plot of its own the share that was cut off."""
    mean = line("mean tokens", BLUE, *run.metric("completions/mean_length"), most)
    low, high = (dict(zip(*run.metric(f"completions/{name}_length"), strict=True)) for name in ("min", "max"))
    if all(x in low and x in high for x in mean["x"]):
        mean |= {
            "low": [low[x] for x in mean["x"]],
            "high": [high[x] for x in mean["x"]],
            "band": "shortest to longest",
        }
    plots = [_plot(panel, [mean], fromZero=True)]
    cut = run.metric("completions/clipped_ratio")
    if cut[0]:
        plots.append(
            _plot(
                panel,
                [line("cut off", RED, *cut, most)],
                key="cut-off",
                title="Completions cut off",
                caption="Those that reach the limit seldom earn a reward; raise the limit where many do.",
                percent=True,
                fromZero=True,
            )
        )
    return plots


def _times(panel: Panel, run: TableRun, most: int) -> list[Data]:
    """The seconds of a step, stacked by phase. `other` is the rest."""
    steps, total = run.metric("time/step")
    by_name = {
        name: dict(zip(*run.metric(f"time/{name}"), strict=True)) for name in PHASES if name != "other"
    }
    phases = {name: np.array([found.get(step, 0.0) for step in steps]) for name, found in by_name.items()}
    phases["other"] = np.maximum(0.0, np.array(total) - sum(phases.values()))
    whole = sum(float(seconds.sum()) for seconds in phases.values())
    lines = []
    for name, seconds in phases.items():
        if seconds.sum() > 0.005 * whole:  # a phase below half a percent would have no visible area
            x, y = thin(steps, seconds)
            lines.append(
                {
                    "label": name,
                    "colour": COLOURS[PHASES[name]],
                    "x": rounded(x.tolist()),
                    "y": rounded(y.tolist()),
                }
            )
    return [_plot(panel, lines, kind="stacked", unit="seconds", fromZero=True)]


def _evaluation(panel: Panel, run: TableRun, most: int) -> list[Data]:
    found = [(entry, run.evaluation(entry.metric)) for entry in evaluation_lines(panel, run)]
    lines = [line(entry.label, entry.colour, *points, most) for entry, points in found if points[0]]
    return [_plot(panel, [{**entry, "mark": "joined"} for entry in lines])]


_KINDS = {
    "lines": _lines,
    "reward": _reward,
    "lengths": _lengths,
    "times": _times,
    "evaluation": _evaluation,
}


def side_by_side(runs: dict[str, TableRun], most: int = 300) -> list[Data]:
    """Returns the panels of several runs: a plot for each line of a panel, with a line for each run."""
    found: dict[str, dict[str, Data]] = {}  # panel → line → plot
    for name, run in runs.items():
        for panel in panels(run, most):
            plots = found.setdefault(panel["key"], {})
            for entry in _comparable(panel, run, most):
                key = f"{panel['key']} {entry['label']}" if plots else panel["key"]
                new = {**panel, "key": key, "kind": "lines", "lines": []}
                points = {part: entry[part] for part in ("x", "y", "mark") if part in entry}
                plots.setdefault(entry["label"], new)["lines"].append({"label": name, **points})
    for plots in found.values():
        for label, plot in plots.items():
            plot["title"] += f": {label}" if len(plots) > 1 else ""
    return [plot for plots in found.values() for plot in plots.values()]


def _comparable(panel: Data, run: TableRun, most: int) -> list[Data]:
    """Returns the lines of a panel that several runs can share: of phases, the whole; evaluations have a panel of their own."""
    if panel["kind"] == "stacked":
        return [line("step", BLUE, *run.metric("time/step"), most)]
    return [entry for entry in panel["lines"] if entry.get("mark") != "dots"]
