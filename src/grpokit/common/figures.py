"""Figures of an evaluation: the set that each is of, its name for people, and its confidence interval."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INTERVAL = "_ci95"  # at the end of a figure's name: half the width of its confidence interval
LABELS = {"pass@1_greedy": "greedy accuracy (pass@1)", "pass@1": "sampled accuracy (pass@1)"}


def set_names(names: Iterable[str]) -> list[str]:
    """Returns the names of the evaluation sets that have a pass@1 among the figures.

    Example:
        >>> set_names(["eval/reward", "eval/math/pass@1", "eval/code/pass@1"])
        ['code', 'math']
    """
    found = (re.fullmatch(r"eval/(.+)/pass@1", name) for name in names)
    return sorted(match[1] for match in found if match)


def split_figure(name: str, sets: Sequence[str]) -> tuple[str, str]:
    """Splits a figure's name into its set, or "" for all sets together, and the rest.

    Example:
        >>> split_figure("eval/math/pass@1", ["code", "math"]), split_figure("eval/mine/tokens", [])
        (('math', 'pass@1'), ('', 'mine/tokens'))
    """
    short = name.removeprefix("eval/")
    own = next((each for each in sets if short.startswith(f"{each}/")), "")
    return own, short.removeprefix(f"{own}/") if own else short


def figure_label(short: str) -> str:
    """Returns the name of a figure for people.

    Example:
        >>> figure_label("pass@1"), figure_label("mean_length")
        ('sampled accuracy (pass@1)', 'mean length')
    """
    return LABELS.get(short, short.replace("_", " "))


def show_figure(figures: Mapping[str, Any], name: str) -> str:
    """Returns `0.602`, or `0.602 ± 0.047` where half the width of its 95 % confidence interval is known; "" if it is missing."""
    half = figures.get(name + INTERVAL)
    if name not in figures:
        return ""
    return f"{figures[name]:.3f}" + ("" if half is None else f" ± {half:.3f}")
