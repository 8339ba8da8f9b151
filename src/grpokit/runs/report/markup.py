"""Values → text that may stand in the page."""

from __future__ import annotations

import html
import re
from typing import Any

LONGEST = 6000  # characters of a text that are shown, so that a page with many completions stays light


def escape(value: Any) -> str:
    """`value` as text with nothing in it that HTML would read, or that UTF-8 can't write."""
    # Half a surrogate pair is JSON but no character, and control characters aren't HTML.
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", str(value).replace("\r\n", "\n"))
    return html.escape(text)


def box(text: str, css: str = "") -> str:
    """`text` in a box that scrolls where it's long: white space kept, the middle of a very long text left out."""
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST
        head, tail = text[: LONGEST * 2 // 3], text[-(LONGEST // 3) :]  # the end often has the answer
        text = f"{head}\n\n[… {left_out:,} characters left out …]\n\n{tail}"
    if not text:
        return f'<pre class="{css} empty">(empty)</pre>'
    # What scrolls must be reachable without a mouse.
    scrolls = len(text) > 500 or text.count("\n") > 8
    focus = ' tabindex="0"' if scrolls else ""
    return f'<pre class="{css}"{focus}>{escape(text)}</pre>'


def number(value: float) -> str:
    """Three significant digits: 0.967, 12.3, 1.2e-06."""
    return f"{value:.3g}".replace("-", "\u2212", value < 0)


def decimal(value: float) -> str:
    """Three decimals, for numbers to compare: 0.930. Others as `number` has them."""
    return f"{value:.3f}".replace("-", "\u2212") if 0.001 <= abs(value) < 100 else number(value)


def percent(value: float) -> str:
    """0.9671 → 96.7%."""
    return f"{100 * value:.1f}%"


def seconds(value: float) -> str:
    """0.25 → 0.25 s, 37.2 → 37 s, 754 → 12 min 34 s, 12000 → 3 h 20 min."""
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"
