"""Strips: one line for each variant or pair, with its runs and its interval on an axis that all lines share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...runs.report.markup import escape, number

TICKS = 6  # marks of the axis, at most
MARGIN = 0.03  # share of the axis left free on both sides


@dataclass(frozen=True)
class Strip:
    """One line: a name, points on the axis, and figures behind.

    Example:
        >>> strip = Strip("dapo", "5 seeds", "0.854", "0.831 to 0.877", (0.85, 0.86), 0.854, 0.831, 0.877)
    """

    name: str
    note: str
    figure: str
    interval: str
    points: tuple[float, ...]  # one for each seed
    middle: float
    low: float  # NaN: no interval
    high: float
    colour: str = "--blue"  # a variable of the page
    css: str = ""  # a class of the line


class Scale:
    """An axis that shows all values, with round marks.

    Example:
        >>> scale = Scale([0.0, 1.0])
        >>> scale.marks, scale.place(0.5)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 50.0)
    """

    def __init__(self, values: Sequence[float]) -> None:
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / TICKS)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        self.marks = [round(place * step, 12) for place in range(first, last + 1)]
        margin = MARGIN * (high - low)
        self.low, self.high = low - margin, high + margin

    def place(self, value: float) -> float:
        """Returns where a value is, in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def strips_html(strips: Sequence[Strip], label: str, has_zero: bool = False) -> str:
    """Returns the lines and their axis.

    Args:
        strips: the lines.
        label: what they show, for readers who cannot see it.
        has_zero: whether to mark zero, as differences need.
    """
    values = [value for strip in strips for value in (*strip.points, strip.middle, strip.low, strip.high)]
    scale = Scale([*values, 0.0] if has_zero else values)
    lines = "".join(_line(strip, scale, has_zero) for strip in strips)
    marks = "".join(
        f'<span style="left:{scale.place(mark)}%">{escape(number(mark))}</span>' for mark in scale.marks
    )
    axis = f'<div class="strip axis"><span></span><div class="ticks">{marks}</div><span></span></div>'
    return f'<div class="strips" role="group" aria-label="{escape(label)}">{lines}{axis}</div>'


def _line(strip: Strip, scale: Scale, has_zero: bool) -> str:
    parts = [f'<i class="grid" style="left:{scale.place(mark)}%"></i>' for mark in scale.marks]
    if has_zero:
        parts.append(f'<span class="zero" style="left:{scale.place(0.0)}%"></span>')
    if math.isfinite(strip.low) and math.isfinite(strip.high):
        start, end = scale.place(strip.low), scale.place(strip.high)
        parts.append(f'<i class="range" style="left:{start}%;width:{end - start:.2f}%"></i>')
    parts += [f'<i class="seed" style="left:{scale.place(point)}%"></i>' for point in strip.points]
    if math.isfinite(strip.middle):
        parts.append(f'<i class="middle" style="left:{scale.place(strip.middle)}%"></i>')
    return (
        f'<div class="strip {strip.css}" style="--key:var({strip.colour})">'
        f'<div class="name">{escape(strip.name)}<small>{escape(strip.note)}</small></div>'
        f'<div class="line" aria-hidden="true">{"".join(parts)}</div>'
        f'<div class="figure"><b>{escape(strip.figure)}</b><small>{escape(strip.interval)}</small></div></div>'
    )


def _round_step(least: float) -> float:
    """Returns the smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `least`."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= least * (1 - 1e-9))
