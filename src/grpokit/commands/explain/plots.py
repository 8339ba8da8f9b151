"""The plots of `grpokit losses`: ℓ and the gradient weight g along the ratio, and token weights by length."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from ...losses import LOSSES, Loss
from .axes import Axis, axes_of
from .curves import Curve, compose, curve, edge, sections
from .page import page
from .style import COLOURS, FAINT, INK, RC, STYLES, label_lines
from .weights import weights_figure

OVERLAID = 7  # the number of colours; more losses get one picture each
SUFFIXES = (".png", ".svg", ".html")


class Line(NamedTuple):
    """A curve with its label, colour and style."""

    label: str
    colour: str
    style: Any
    curve: Curve


def plot_losses(names: Sequence[str | Loss], output: Path) -> list[Path]:
    """Draws the losses and the token weights of their reductions. Returns the files written.

    .png and .svg: `output`, one more file for losses on another axis (`-near`, `-sampler`), and one for the weights
    (`-weights`). More than seven losses get one file each. .html: one self-contained page.

    Args:
        names: names of LOSSES or composed losses; none: all of them.
        output: the file to write.

    Raises:
        ValueError: an unknown name, or another suffix.
    """
    output = Path(output)
    if output.suffix not in SUFFIXES:
        raise ValueError(f"output {str(output)!r}: ends in none of {', '.join(SUFFIXES)}; losses.svg works")
    losses = [compose(name) for name in (names or LOSSES)]
    figures = loss_figures(losses) | {"weights": weights_figure([loss.reduction for loss in losses])}
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".html":
        output.write_text(
            page(losses, {key: svg(figure) for key, figure in figures.items()}), encoding="utf-8"
        )
        return [output]
    written = []
    for key, figure in figures.items():
        path = output if not written else output.with_name(f"{output.stem}-{key}{output.suffix}")
        save(figure, path)
        written.append(path)
    return written


def loss_figures(losses: Sequence[Loss]) -> dict[str, Figure]:
    """Returns the pictures by name: one per axis, or one per loss if there are more than seven."""
    if len(losses) > OVERLAID:
        return {loss.name: loss_figure(axes_of([loss])[0]) for loss in losses}
    return {axis.key: loss_figure(axis) for axis in axes_of(list(losses))}


def loss_figure(axis: Axis) -> Figure:
    """Draws ℓ above and g below, with A > 0 on the left and A < 0 on the right. Against the sampler's π, it draws g only."""
    rows = ("g",) if axis.key == "sampler" else ("ell", "g")
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.4, 2.0 + 1.75 * len(rows) - 0.4 * (len(rows) == 1)), layout="constrained")
        grid: Any = figure.subplots(len(rows), 2, sharex=True, squeeze=False)
        drawn: list[list[Line]] = []
        for column, advantage in enumerate((1.0, -1.0)):
            lines = [
                curve(loss, axis.x, advantage, section) for loss in axis.losses for section in sections(loss)
            ]
            drawn.append(_distinct(lines))
            for row, quantity in enumerate(rows):
                _panel(grid[row, column], axis, drawn[column], quantity)
            if axis.key != "sampler" and len(axis.losses) == 1:
                _shade(grid[:, column], lines[0])
            if len(rows) == 2:
                _limits(grid[:1, column], lines, "ell")
            grid[0, column].set_title(rf"$A={'+' if advantage > 0 else '-'}1$", fontsize=11, pad=13)
            grid[-1, column].set_xlabel(axis.label)
        grid[-1, 0].set_ylabel(r"$g=-\frac{1}{A}\,\frac{\partial\ell}{\partial\log\pi}$", fontsize=12)
        if len(rows) == 2:
            grid[0, 0].set_ylabel(r"$\ell$", fontsize=13)
        _limits(grid[-1], [line.curve for column in drawn for line in column], "g")
        labelled = [(axes, column) for axes, column in zip(grid[-1], drawn, strict=True) if len(column) > 1]
        if labelled:
            figure.draw_without_rendering()  # computes the layout, which the labels' places depend on
            figure.set_layout_engine("none")
        for axes, column in labelled:
            label_lines(axes, [(line.label, line.curve.x, line.curve.g, line.colour) for line in column])
    return figure


def svg(figure: Figure) -> str:
    """Returns the picture as an <svg> element, with the same text on every run."""
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Hundredths of a point are finer than any screen or press, and fewer digits make a smaller file.
    short = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    return re.sub(r"\n\s+", "\n", short[short.index("<svg") :])


def save(figure: Figure, path: Path) -> None:
    """Writes the picture as .png or .svg."""
    if path.suffix == ".svg":
        path.write_text(svg(figure), encoding="utf-8")
        return
    with matplotlib.rc_context(RC):
        figure.savefig(path, dpi=200)


def _distinct(curves: list[Curve]) -> list[Line]:
    """Merges curves that look the same into one line with all their names."""
    several = len({c.loss.name for c in curves}) > 1
    found: list[Line] = []
    for number, c in enumerate(curves):
        label = ", ".join(part for part in (c.loss.name if several else "", c.section.label) if part)
        for k, line in enumerate(found):
            if all(
                bool(((a - b).abs() < 1e-6).all()) for a, b in ((line.curve.g, c.g), (line.curve.ell, c.ell))
            ):
                found[k] = line._replace(label=f"{line.label}\n{label}")
                break
        else:
            found.append(Line(label, COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)], c))
    return found


def _panel(axes: Axes, axis: Axis, drawn: list[Line], quantity: str) -> None:
    for _, colour, style, c in drawn:
        y = getattr(c, quantity)
        for start, stop in _pieces(y):
            axes.plot(c.x[start:stop], y[start:stop], color=colour, linestyle=style, zorder=3)
            if stop < len(y):  # a jump is drawn as a thin line
                at = c.x[stop - 1 : stop + 1]
                axes.plot(at, y[stop - 1 : stop + 1], color=colour, linewidth=0.7, alpha=0.5, zorder=2)
    axes.axhline(0, color=FAINT, linewidth=0.6, zorder=1)
    axes.grid(axis="y", color=INK, alpha=0.07, linewidth=0.6)
    axes.ticklabel_format(axis="y", useOffset=False)
    if axis.key == "wide":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif axis.key == "near":
        axes.ticklabel_format(axis="x", useOffset=False)
    if axis.key != "sampler":
        axes.axvline(1, color=FAINT, linewidth=0.6, linestyle=(0, (2, 3)), zorder=1)
    axes.set_xlim(float(axis.x[0]), float(axis.x[-1]))


def _pieces(y: Tensor) -> list[tuple[int, int]]:
    """Returns the pieces of a line without jumps. A jump is a step five times as high as the steps next to it."""
    step = (y[1:] - y[:-1]).abs()
    beside = torch.nn.functional.pad(step, (1, 1))
    jump = (step > 0.05) & (step > 5 * torch.maximum(beside[:-2], beside[2:]))
    cuts = [int(k) + 1 for k in jump.nonzero().flatten()]
    return list(zip([0, *cuts], [*cuts, len(y)], strict=True))


def _shade(column: Any, c: Curve) -> None:
    """Shades the region where the ratio is held, in both panels of a column, and writes its bounds above."""
    held, digits = c.held.int(), 3 if float(c.x[-1]) > 2 else 5
    edges = (held[1:] != held[:-1]).nonzero().flatten().tolist()
    bounds = [float(c.x[0]), *(edge(c, k) for k in edges), float(c.x[-1])]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        if bool(held[0]) == (number % 2 == 0):
            for axes in column:
                axes.axvspan(start, stop, color=INK, alpha=0.07, linewidth=0, zorder=0)
    for x in bounds[1:-1]:
        at = column[0].get_xaxis_transform()
        column[0].text(x, 1.01, f"{x:.{digits}g}", transform=at, ha="center", va="bottom", fontsize=7.5)


def _limits(axes: Sequence[Axes], curves: Sequence[Curve], quantity: str) -> None:
    """Sets the limits to the values of all curves, but not beyond those of ratios around 5: unclipped lines leave the frame."""
    values = torch.cat([getattr(c, quantity) for c in curves]).clamp(-5.5, 5.5)
    low, high = float(values.min()), float(values.max())
    if quantity == "g":
        low, high = min(low, 0.0), max(high, 1.0)
    margin = 0.06 * (high - low)
    for each in axes:
        each.set_ylim(low - margin, high + margin)
