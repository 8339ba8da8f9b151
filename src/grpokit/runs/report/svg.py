"""matplotlib figures → SVG that may stand inside a page, in the page's own colours and fonts."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# What a plot draws with → the page's variable, so that one plot serves the light and the dark page. The series'
# colours are Okabe and Ito's, which colour-blind readers can tell apart.
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

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, a tenth of the size
    "svg.hashsalt": "grpokit",  # the same figure gives the same bytes
    "text.parse_math": False,  # a $ in the name of a reward function is a $
    "font.family": "DejaVu Sans",  # comes with matplotlib, so no font is looked for; the page sets its own
    "font.size": 9.0,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
}
_FORMULA_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "grpokit",
    "mathtext.fontset": "stix",
}
_FORMULA_SIZE = 12.0  # points; on the page, 1 em


def figure_svg(figure: Figure, name: str, label: str) -> str:
    """`figure` as one `<svg>` element, as wide as its container.

    Args:
        name: prefix of its ids; must differ between the figures of a page.
        label: what a reader who can't see it is told.
    """
    body, width, height = _element(figure, name)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">{body}</svg>'
    )


def formula_svg(line: str, name: str) -> str | None:
    """A line of LaTeX as one `<svg>` element in the size of the text; None where mathtext can't read it."""
    with matplotlib.rc_context(_FORMULA_STYLE):
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, _mathtext(line), fontsize=_FORMULA_SIZE)
        try:
            body, width, height = _element(figure, name, bbox_inches="tight", pad_inches=0.02)
        except ValueError:  # what mathtext raises for a formula that it can't parse
            return None
    em_width, em_height = width / _FORMULA_SIZE, height / _FORMULA_SIZE
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="width:{em_width:.2f}em;height:{em_height:.2f}em" '
        f'role="img" aria-label="{html.escape(line)}">{body}</svg>'
    )


def _mathtext(line: str) -> str:
    """LaTeX as mathtext takes it: between dollars, with fractions in display size as on a line of their own."""
    line = line.replace(r"\frac", r"\dfrac")
    return line if "$" in line else f"${line}$"


def _element(figure: Figure, name: str, **how: Any) -> tuple[str, float, float]:
    """(what's inside the `<svg>`, its width, its height), fit to stand in a page among others."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks: the text stays text, and the browser has the font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, **how)
    text = buffer.getvalue()
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None  # matplotlib writes one always
    body = text[text.index(">", box.end()) + 1 : text.rindex("</svg>")]
    # The <style> would hold for the whole page, and comments and metadata name addresses.
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = body.replace("xlink:href", "href").replace("\n", " ")
    body = re.sub(r' d="[^"]*"', _rounded, body)
    body = re.sub(r"#[0-9a-f]{6}\b", _colour, body)
    body = re.sub(r">\s+<", "><", re.sub(r"\s{2,}", " ", body)).strip()
    return _own_ids(body, name), float(box[1]), float(box[2])


def _rounded(path: re.Match[str]) -> str:
    """A path with two decimals: a hundredth of a point can't be seen, and half the page is digits."""
    return re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", path[0])


def _colour(match: re.Match[str]) -> str:
    variable = COLOURS.get(match[0])
    return f"var({variable},{match[0]})" if variable else match[0]


def _own_ids(body: str, name: str) -> str:
    """Ids that something refers to get the prefix `name`; the others go. All figures share the page's ids."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r'\s*\bid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
