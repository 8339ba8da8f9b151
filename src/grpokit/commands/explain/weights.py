"""All reductions in one picture: the weight of a token and of a whole sequence, against the sequence's length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from ...losses import REDUCTIONS, Counts, make_loss, sequence_weights
from .curves import EXAMPLE_LENGTH
from .style import COLOURS, FAINT, RC

# Two groups of four completions, one prompt answered briefly and one at length, dealt to two ranks in turn.
LENGTHS = (25, 50, 75, 100, 200, 400, 600, 800)
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)
RANKS = (0, 1, 0, 1, 0, 1, 0, 1)
_MARKS = ("o", "s", "^", "D", "v", "P")


def example_weights(reduction: str) -> Tensor:
    """Returns w [8] of the example's sequences (LENGTHS, GROUPS and RANKS)."""
    length = EXAMPLE_LENGTH if reduction == "constant_length" else None
    loss = make_loss("grpo", reduction=reduction, max_completion_length=length)
    lengths, groups, ranks = torch.tensor(LENGTHS), torch.tensor(GROUPS), torch.tensor(RANKS)
    weights = torch.zeros(len(LENGTHS), dtype=torch.float64)
    own = [Counts.of(lengths[ranks == rank], groups[ranks == rank]) for rank in sorted(set(RANKS))]
    for rank, counts in enumerate(Counts.across_ranks(own)):
        here = ranks == rank
        weights[here] = sequence_weights(loss, lengths[here], counts, groups[here])
    return weights


def weights_figure(reductions: Sequence[str] = tuple(REDUCTIONS)) -> Figure:
    """Draws w_i (left) and w_i·T_i (right) against T_i for every reduction. The named `reductions` are in colour."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.4, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        ends: dict[str, tuple[float, str]] = {}
        for number, name in enumerate(REDUCTIONS):
            named = name in reductions
            colour = COLOURS[number % len(COLOURS)] if named else FAINT
            look = {"color": colour, "marker": _MARKS[number % len(_MARKS)], "alpha": 1 if named else 0.35}
            w, lengths = example_weights(name), torch.tensor(LENGTHS)
            for line in _lines(w):
                for axes, values in ((left, w), (right, w * lengths)):
                    axes.plot(
                        lengths[line], values[line], **look, markersize=4.2, linewidth=1.5, zorder=2 + named
                    )
            ends[name] = (float((w * lengths)[-1]), colour)
        _scales(left, right)
        _name(right, ends)
        left.set_ylabel("$w_i$", fontsize=13)
        right.set_ylabel(r"$w_i\,T_i$", fontsize=13)
    return figure


def _lines(w: Tensor) -> list[Tensor]:
    """Returns the points [k] to join: those of equal weight where there are two levels (ranks, groups), else all."""
    levels = w.unique()
    return (
        [(w == level).nonzero().flatten() for level in levels] if len(levels) <= 2 else [torch.arange(len(w))]
    )


def _scales(*panels: Any) -> None:
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("$T_i$")
        axes.xaxis.set_major_locator(FixedLocator([25, 50, 100, 200, 400, 800]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _name(axes: Any, ends: dict[str, tuple[float, str]]) -> None:
    """Writes each line's name at its right end. Names that would touch are moved apart."""
    names = sorted(ends, key=lambda name: ends[name][0])
    low, high = (math.log(limit) for limit in axes.get_ylim())
    heights = [(math.log(ends[name][0]) - low) / (high - low) for name in names]
    for _ in range(100):
        for k in range(len(heights) - 1):
            short = 0.065 - (heights[k + 1] - heights[k])
            if short > 0:
                heights[k], heights[k + 1] = heights[k] - short / 2, heights[k + 1] + short / 2
    for name, height in zip(names, heights, strict=True):
        value, colour = ends[name]
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axes.annotate(
            name, (LENGTHS[-1], value), (1.07, height), textcoords="axes fraction", va="center", fontsize=8.5,
            color=colour, annotation_clip=False, arrowprops=line,
        )  # fmt: skip
