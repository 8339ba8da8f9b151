"""The colours of the plots, and the variables of the page that stand for them."""

from __future__ import annotations

from collections.abc import Mapping

# A plot's colour → the page's variable, so that one plot serves the light and the dark page. The series' colours are
# those of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS: Mapping[str, str] = {
    "#0072b2": "--blue",
    "#d55e00": "--red",
    "#009e73": "--green",
    "#cc79a7": "--pink",
    "#e69f00": "--amber",
    "#8a8f98": "--grey",
    "#5c6370": "--ink-2",  # axis labels
    "#c9ced6": "--axis",
    "#eceef2": "--grid",
}
BLUE, RED, GREEN, PINK, AMBER, GREY, INK, AXIS, GRID = COLOURS
