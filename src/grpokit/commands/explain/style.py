"""The look of the plots and the placement of labels, in one place, so that all pictures look alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette, which readers with any kind of colour vision can tell apart, without yellow: it is too pale
# for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1d232b")
STYLES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)))  # dash styles too, for black and white
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
    "svg.hashsalt": "grpokit",  # the same picture gives the same file
}


Points = tuple[Any, Any]  # a line's (x, y) in axes coordinates, 0 to 1


class Box(NamedTuple):
    """A label's centre and size, in axes coordinates."""

    x: float
    y: float
    width: float
    height: float


def label_lines(axes: Axes, lines: Sequence[tuple[str, Any, Any, str]]) -> None:
    """Writes a label next to each line, where other lines and labels are farthest away.

    Candidate places are next to the line itself, within the axes. Call it after the limits are set.

    Args:
        axes: the axes.
        lines: (label, x, y, colour) of each line; x and y are arrays.
    """
    shown = [(label, _to_axes(axes, x, y), colour) for label, x, y, colour in lines]
    # The line g = 0 must be avoided too.
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
    """Returns candidate centres: a little above, below, or to the side of the line, inside the frame."""
    places, (u, v), side = [], line, width / 2 + 0.03
    for k in range(0, len(u), 5):
        for shift, rise in ((0, lift), (0, -lift), (side, 0), (-side, 0)):
            x, y = float(u[k] + shift), float(v[k] + rise)
            if 0 <= v[k] < 0.96 and width / 2 < x < 1 - width / 2 and 0.04 < y < 0.97:
                places.append((x, y))
    return places or [(0.5, 0.5)]


def _room(box: Box, others: Sequence[Points], crossing: Sequence[Points], placed: Sequence[Box]) -> float:
    """Measures how far a label at `box` is from everything it might be confused with or overlap.

    0.16 is enough; beyond that, places further right win. The label must only be clear of the lines in `crossing`. It should
    be far from those in `others` and from other labels.
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
