"""Converts values to text that is safe in the page."""

from __future__ import annotations

import html
import re
from typing import Any

from .style import CSS

# The browser enforces it: the page runs nothing and fetches nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LONGEST = 6000  # characters shown of a text, so that a page with many completions stays small


def document(title: str, body: str, css: str = "") -> str:
    """Returns a whole page that fetches nothing.

    Args:
        title: its title, as text.
        body: its content, as HTML.
        css: rules besides those of the style sheet.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · grpokit</title><style>{CSS}{css}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def escape(value: Any) -> str:
    """Returns `value` as text without anything that HTML would interpret or UTF-8 cannot encode."""
    # Half a surrogate pair is valid JSON but no character, and control characters are not HTML.
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", str(value).replace("\r\n", "\n"))
    return html.escape(text)


def box(text: str, css: str = "") -> str:
    """Puts `text` in a box that scrolls if it is long. White space is kept; the middle of a very long text is left out."""
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST
        head, tail = text[: LONGEST * 2 // 3], text[-(LONGEST // 3) :]  # the answer is often at the end
        text = f"{head}\n\n[… {left_out:,} characters left out …]\n\n{tail}"
    if not text:
        return f'<pre class="{css} empty">(empty)</pre>'
    # A box that scrolls must be reachable without a mouse.
    scrolls = len(text) > 500 or text.count("\n") > 8
    focus = ' tabindex="0"' if scrolls else ""
    return f'<pre class="{css}"{focus}>{escape(text)}</pre>'


def number(value: float) -> str:
    """Formats a number with three significant digits: 0.967, 12.3, 1.2e-06."""
    return f"{value:.3g}".replace("-", "\u2212", value < 0)


def decimal(value: float) -> str:
    """Formats a number to compare with three decimals: 0.930. Very small and large ones are as in `number`."""
    return f"{value:.3f}".replace("-", "\u2212") if 0.001 <= abs(value) < 100 else number(value)


def percent(value: float) -> str:
    """Formats 0.9671 as 96.7%."""
    return f"{100 * value:.1f}%"


def seconds(value: float) -> str:
    """Formats seconds: 0.25 → 0.25 s, 37.2 → 37 s, 754 → 12 min 34 s, 12000 → 3 h 20 min."""
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"
