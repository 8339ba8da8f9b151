"""Renders `RunData` as the HTML page."""

from __future__ import annotations

from ...common import VERSION
from ..advice import advise
from .colours import COLOURS
from .data import RunData
from .groups import groups_html
from .markup import document, escape
from .panels import REWARD, Panel, panels_of
from .plots import Key, draw
from .series import MOST_POINTS, trend_window
from .settings import Setting, facts_of, settings_of
from .summary import cards_html
from .svg import formula_svg


def render_page(run: RunData, formula: str | None = None) -> str:
    """Returns the whole page. `formula` is LaTeX, one formula per line."""
    body = "".join(
        (
            _header(run),
            cards_html(run),
            _advice(run),
            _plots(run),
            _formula(formula, run),
            groups_html(run),
            _configuration(run),
            f"<footer>Made by grpokit {escape(VERSION)} from {escape(run.path)}</footer>",
        )
    )
    return document(run.name, body)


def _header(run: RunData) -> str:
    """Shows the run's name, its model, dataset and loss."""
    return (
        f'<header><p class="eyebrow">grpokit run</p><h1>{escape(run.name)}</h1>'
        f'<p class="facts">{" · ".join(map(escape, facts_of(run.config)))}</p></header>'
    )


def _advice(run: RunData) -> str:
    """Lists what is likely wrong; nothing where no rule fired."""
    found = advise(run.steps, run.evaluations, run.config)
    items = "".join(
        f'<li class="{advice.severity}">{escape(advice.text)} <small>'
        f"first seen at step {advice.step:,}{'' if advice.now else ', no longer holds'}; "
        f"docs/en/{escape(advice.guide)}</small></li>"
        for advice in found
    )
    return f"<section><h2>Advice</h2><ul class='advice'>{items}</ul></section>" if found else ""


# --------------------------------------------------------------------------- plots


def _plots(run: RunData) -> str:
    """Shows the reward across the page, and the other plots in two columns."""
    panels = panels_of(run)
    hero = _figure(REWARD, run, ("wide", "narrow")) if run.has("reward") else ""
    if not panels and not hero:
        return ""
    grid = "".join(_figure(panel, run) for panel in panels)
    return f"<section><h2>Training</h2>{_how_drawn(run)}{hero}<div class='plots'>{grid}</div></section>"


def _figure(panel: Panel, run: RunData, sizes: tuple[str, ...] = ("",)) -> str:
    """Shows a plot with title, legend and caption. With several sizes, the page shows the one that fits."""
    drawn = [(f"on-{size}", *draw(panel, run, size)) for size in sizes]
    plots = "".join(f'<div class="{css}">{svg}</div>' for css, svg, _ in drawn)
    return (
        f'<figure class="plot" id="plot-{panel.key}"><h3>{escape(panel.title)}</h3>'
        f"{legend_html(drawn[0][2])}{plots}<figcaption>{escape(panel.caption)}</figcaption></figure>"
    )


def legend_html(keys: list[Key]) -> str:
    """Names the lines; nothing where there is only one."""
    items = "".join(
        f'<li><i class="{key.mark}" style="--key:var({COLOURS[key.colour]})"></i>{escape(key.label)}</li>'
        for key in keys
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def _how_drawn(run: RunData) -> str:
    """Explains the faint and the strong lines, where there are both."""
    points = len(run.steps)
    window = trend_window(min(points, MOST_POINTS))
    if window == 1:
        return ""
    each = -(-points // MOST_POINTS)
    faint = "each step" if each == 1 else f"the mean of {each} steps"
    return f'<p class="note">Faint lines: {faint}. Strong lines: a rolling mean over about {window * each} steps.</p>'


# --------------------------------------------------------------------------- the loss and the configuration


def _formula(formula: str | None, run: RunData) -> str:
    """Shows the loss, one line per formula. A line that mathtext cannot draw is shown as LaTeX."""
    lines = [line.strip() for line in (formula or "").splitlines() if line.strip()]
    if not lines:
        return ""
    drawn = [
        formula_svg(line, f"formula-{place}") or f"<code>{escape(line)}</code>"
        for place, line in enumerate(lines)
    ]
    name = run.config.get("loss_type")
    title = f"The loss <small>{escape(name)}</small>" if name else "The loss"
    items = "".join(f"<p>{line}</p>" for line in drawn)
    return f'<section><h2>{title}</h2><div class="formula" tabindex="0">{items}</div></section>'


def _configuration(run: RunData) -> str:
    """Shows all options in a table. Options that differ from their defaults come first."""
    settings = settings_of(run.config)
    rows = "".join(map(_option, settings))
    count = f"{sum(s.changed for s in settings)} of {len(settings)} options differ from their defaults"
    return (
        f"<section><details><summary><h2>Configuration</h2> <span class='note'>{count}</span></summary>"
        f"<table class='options'><thead><tr><th>option</th><th>value</th></tr></thead><tbody>{rows}</tbody></table>"
        "</details></section>"
    )


def _option(setting: Setting) -> str:
    default = setting.default
    was = f' <span class="note">default {escape(default)}</span>' if default else ""
    css = ' class="changed"' if setting.changed else ""
    name = escape(setting.name).replace("_", "_<wbr>")
    return f"<tr{css}><th scope='row'>{name}</th><td>{escape(setting.value)}{was}</td></tr>"
