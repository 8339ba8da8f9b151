"""Renders one self-contained page: formulas, and pictures as inline SVG with captions. No network access, no scripts."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from ...losses import Loss
from .axes import axes_of
from .notes import notes_of
from .plain_text import plain_text
from .show import formula_lines

_STYLE = """
body { margin: 2.5rem auto; max-width: 46rem; padding: 0 1rem; background: #fbfbf9; color: #1d232b;
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem; font-family: ui-monospace, monospace; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; } figcaption, .parts { color: #5b6470; font-size: .9rem; }
.formula { font: 1rem/1.7 "STIX Two Math", "Cambria Math", serif; white-space: pre-wrap; margin: .4rem 0; }
"""

HOW = (
    "Evaluated by policy_loss on sequences of one token. ℓ is the token's loss and g its gradient's weight, "
    "∂ℓ/∂log π = −g·A. Where ℓ has a factor log π, it counts from π_old. Shaded: the ratio is held."
)
ON_SAMPLER = (
    "g against the policy's probability π of the token, for several probabilities μ under the sampler."
)
WEIGHTS = (
    "Weight w of one token (left) and of its whole sequence (right) in an update of two prompts, one answered shortly "
    "and one at length, on two ranks. Reductions that the losses above do not use are grey."
)
_SECTION_CAPTIONS = {
    "future": "F is held at 0 (factor 1) and at 1 (factor at its cap).",
    "selected": "S is the set of selected tokens; selection is held fixed while the ratio moves.",
    "kept": "M is 1 on kept and 0 on dropped tokens; it is held fixed while the ratio moves.",
    "real_slope": "The update is one group: the token's sequence, and one of the other label whose ratio stays 1.",
}


def caption(losses: Sequence[Loss]) -> str:
    """Describes the picture of these losses, and the cross-section of a coupled loss."""
    if all(loss.surrogate.anchor == "sampler" for loss in losses):
        return ON_SAMPLER
    inputs = {name for loss in losses for name in loss.surrogate.inputs}
    return " ".join([HOW, *(text for name, text in _SECTION_CAPTIONS.items() if name in inputs)])


def page(losses: Sequence[Loss], pictures: Mapping[str, str]) -> str:
    """Renders the page.

    `pictures` maps a key to an <svg> element. A picture whose key is a loss's name appears under that loss.
    """
    title = "Losses: " + ", ".join(loss.name for loss in losses)
    body = [f"<h1>{html.escape(title)}</h1>"]
    for loss in losses:
        body.append(_section(loss))
        if loss.name in pictures:
            body.append(_figure(pictures[loss.name], loss.name, caption([loss])))
    on_axis = {axis.key: axis.losses for axis in axes_of(list(losses))}
    for key in [key for key in pictures if key not in {loss.name for loss in losses}]:
        shown = on_axis.get(key, ())
        names = ", ".join(loss.name for loss in shown)
        body.append(_figure(pictures[key], key, f"{names}. {caption(shown)}" if shown else WEIGHTS))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</html>\n"
    )


def _figure(picture: str, key: str, text: str) -> str:
    return f"<figure>{own_ids(picture, key)}<figcaption>{html.escape(text)}</figcaption></figure>"


def _section(loss: Loss) -> str:
    notes = notes_of(loss.name)
    problem = f"<p>{html.escape(notes.problem)}</p>" if notes else ""
    formula = html.escape("\n".join(plain_text(line) for line in formula_lines(loss)))
    parts = f'<p class="parts">{html.escape(str(loss))}</p>'
    return f'<h2>{loss.name}</h2>{problem}<div class="formula">{formula}</div>{parts}'


def own_ids(svg: str, key: str) -> str:
    """Prefixes the ids in `svg` with `key`, because several pictures in a page would share them otherwise."""
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", svg)
