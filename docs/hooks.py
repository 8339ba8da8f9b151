"""The functions that mkdocs calls for each page. The site needs neither scripts nor network access.

LaTeX becomes MathML, which browsers render themselves. Headings of translated pages get the English anchors, so that one
link works in both languages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown.extensions.toc import slugify

ENGLISH = Path(__file__).resolve().parent / "en"
# The formulas as pymdownx.arithmatex leaves them in a page: \( \) in a span, \[ \] in a div.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
_TAGGED = re.compile(r"^```(python|bash) (?:formula|example|not-run)$", re.MULTILINE)
_FILE = re.compile(r"^```(\w+) (\S+\.\w+)$", re.MULTILINE)  # ```yaml first.yaml
_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{2,3} )(.*)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Sets the anchors, and removes the tags by which the tests find a page's programs, because no highlighter knows them.

    A file's name becomes the block's title.
    """
    language, _, rest = page.file.src_uri.partition("/")
    original = ENGLISH / rest
    if language != ENGLISH.name and original.exists():
        markdown = with_anchors(markdown, headings(original.read_text(encoding="utf-8")))
    return _FILE.sub(r'```\1 title="\2"', _TAGGED.sub(r"```\1", markdown))


def on_page_content(content: str, **_: object) -> str:
    """Replaces each formula of a page by MathML. Raises if one cannot be read, so that the build fails."""
    return _FORMULA.sub(lambda found: _mathml(html.unescape(found[2]), found[1] == "div"), content)


def headings(markdown: str) -> Iterator[str]:
    """Yields the text of each heading below the title, without code blocks."""
    for part in _BLOCK.split(markdown)[::2]:
        yield from (found[2] for found in _HEADING.finditer(part))


def with_anchors(markdown: str, names: Iterator[str]) -> str:
    """Gives the headings of `markdown` the anchors of `names`, in order. Further headings keep their own."""

    def anchored(found: re.Match[str]) -> str:
        name = next(names, None)
        return found[0] if name is None else f"{found[0]} {{ #{slugify(name, '-')} }}"

    parts = _BLOCK.split(markdown)
    return "".join(part if k % 2 else _HEADING.sub(anchored, part) for k, part in enumerate(parts))


def _mathml(latex: str, display: bool) -> str:
    return convert(latex.strip(), display="block" if display else "inline")
