"""How pictures look, and where the labels go: one place, so that all pages and papers look alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette (told apart with every kind of colour vision), without yellow: it is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1d232b")
STYLES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)))  # and by dashes, for black and white
INK, FAINT, PAPER = "#1d232b", "#8a929c", "#fbfbf9"

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "mathtext.fontset": "cm",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "grpokit",  # the same picture is the same file
}


Points = tuple[Any, Any]  # a line's (x, y) in the axes' own coordinates, 0 to 1


class Box(NamedTuple):
    """A label's centre and size, in the same coordinates."""

    x: float
    y: float
    width: float
    height: float


def label_lines(axes: Axes, lines: Sequence[tuple[str, Any, Any, str]]) -> None:
    """Write each line's (label, x, y, colour) beside it, where the other lines and the labels so far are farthest.

    `x` and `y` are arrays; places are looked for on the line itself, within the axes. Call it when the limits are set.
    """
    shown = [(label, _to_axes(axes, x, y), colour) for label, x, y, colour in lines]
    # The line g = 0 is in the way too.
    zero = _to_axes(axes, np.array(axes.get_xlim()).repeat(100), np.zeros(200))
    zero = (np.linspace(0, 1, 200), zero[1])
    placed: list[Box] = []
    for number, (label, own, colour) in enumerate(shown):
        rows = label.split("\n")
        width = 0.026 * max(3, *(len(row.replace("$", "").replace("\\", "")) for row in rows))
        others = [curve for k, (_, curve, _) in enumerate(shown) if k != number]
        boxes = [Box(x, y, width, 0.05 * len(rows)) for x, y in _places(own, width, 0.04 + 0.035 * len(rows))]
        best = max(boxes, key=lambda box: _room(box, others, [own, zero], placed))
        placed.append(best)
        text = axes.text(
            best.x, best.y, label, color=colour, transform=axes.transAxes, ha="center", va="center", fontsize=9.5
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=3, foreground=PAPER)])


def _to_axes(axes: Axes, x: Any, y: Any) -> Points:
    points = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))
    return points[:, 0], points[:, 1]


def _places(line: Points, width: float, lift: float) -> list[tuple[float, float]]:
    """Candidate centres: a little above, below or beside the line, inside the frame."""
    places, (u, v), side = [], line, width / 2 + 0.03
    for k in range(0, len(u), 5):
        for shift, rise in ((0, lift), (0, -lift), (side, 0), (-side, 0)):
            x, y = float(u[k] + shift), float(v[k] + rise)
            if 0 <= v[k] < 0.96 and width / 2 < x < 1 - width / 2 and 0.04 < y < 0.97:
                places.append((x, y))
    return places or [(0.5, 0.5)]


def _room(box: Box, others: Sequence[Points], crossing: Sequence[Points], placed: Sequence[Box]) -> float:
    """How far a label at `box` is from all it might be taken for or run into; 0.16 is enough, then the right wins.

    Of the lines of `crossing` it must only be clear; from those of `others` and from labels it should be far.
    """
    gaps = [0.16]
    for factor, lines in ((1, others), (3, crossing)):
        for u, v in lines:
            near = np.abs(u - box.x) < box.width / 2 + 0.01
            if near.any():
                gaps.append(factor * (float(np.abs(v[near] - box.y).min()) - box.height / 2))
    for other in placed:
        if abs(other.x - box.x) < (box.width + other.width) / 2 + 0.01:
            gaps.append(abs(other.y - box.y) - (box.height + other.height) / 2)
    return min(gaps) + 0.01 * box.x
