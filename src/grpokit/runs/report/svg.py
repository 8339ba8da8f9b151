"""Converts matplotlib figures to SVG for use inside a page, in the page's own colours and fonts."""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .colours import AXIS, COLOURS, GRID, INK

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: in the page's font, selectable, a tenth of the size
    "svg.hashsalt": "grpokit",  # the same figure gives the same bytes
    "text.parse_math": False,  # a $ in the name of a reward function is just a $
    "font.family": "DejaVu Sans",  # comes with matplotlib, so no font is searched for; the page sets its own
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
_FORMULA_SIZE = 12.0  # points; 1 em on the page


def figure_svg(figure: Figure, name: str, label: str) -> str:
    """Returns `figure` as one `<svg>` element, as wide as its container.

    Args:
        figure: the figure.
        name: prefix of its ids; must differ between the figures of a page.
        label: a description for readers who cannot see it.
    """
    body, width, height = _element(figure, name)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">{body}</svg>'
    )


def formula_svg(line: str, name: str) -> str | None:
    """Returns a line of LaTeX as one `<svg>` element in the size of the text; None if mathtext cannot read it."""
    with matplotlib.rc_context(_FORMULA_STYLE):
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, _mathtext(line), fontsize=_FORMULA_SIZE)
        try:
            body, width, height = _element(figure, name, bbox_inches="tight", pad_inches=0.02)
        except ValueError:  # mathtext raises it for a formula that it cannot parse
            return None
    em_width, em_height = width / _FORMULA_SIZE, height / _FORMULA_SIZE
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="width:{em_width:.2f}em;height:{em_height:.2f}em" '
        f'role="img" aria-label="{html.escape(line)}">{body}</svg>'
    )


def _mathtext(line: str) -> str:
    """Converts LaTeX for mathtext: between dollars, with fractions in display size."""
    line = line.replace(r"\frac", r"\dfrac")
    return line if "$" in line else f"${line}$"


def _element(figure: Figure, name: str, **how: Any) -> tuple[str, float, float]:
    """Returns (the content of the `<svg>`, its width, its height), ready for a page with other figures."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib's font may lack a script of the name, but the text stays text, and the browser has a font for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, **how)
    text = buffer.getvalue()
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None  # matplotlib always writes one
    body = text[text.index(">", box.end()) + 1 : text.rindex("</svg>")]
    # The <style> would apply to the whole page, and comments and metadata contain addresses.
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = body.replace("xlink:href", "href").replace("\n", " ")
    body = re.sub(r' d="[^"]*"', _rounded, body)
    body = re.sub(r"#[0-9a-f]{6}\b", _colour, body)
    body = re.sub(r">\s+<", "><", re.sub(r"\s{2,}", " ", body)).strip()
    return _own_ids(body, name), float(box[1]), float(box[2])


def _rounded(path: re.Match[str]) -> str:
    """Rounds a path to two decimals. A hundredth of a point cannot be seen, and half of the page is digits."""
    return re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", path[0])


def _colour(match: re.Match[str]) -> str:
    variable = COLOURS.get(match[0])
    return f"var({variable},{match[0]})" if variable else match[0]


def _own_ids(body: str, name: str) -> str:
    """Prefixes ids that are referred to with `name`, and removes the others. All figures share the page's ids."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r'\s*\bid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
