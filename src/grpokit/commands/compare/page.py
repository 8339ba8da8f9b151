"""Renders an `Outcome` as one HTML page, self-contained as a run's report: no scripts, no network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

from ...common import VERSION
from ...runs.report.colours import COLOURS
from ...runs.report.markup import decimal, document, escape
from ...runs.report.page import legend_html
from .outcome import Outcome, is_gain, series
from .plots import FEW, PALETTE, Curve, curve_of, draw_apart, draw_together
from .strips import Strip, strips_html
from .style import CSS
from .summary import (
    by_score,
    caution,
    ordered,
    pair_note,
    show_interval,
    show_p,
    show_seeds,
    sorted_pairs,
    verdict,
)
from .tables import confidence, health_html, matrix_html, pairs_html, settings_html, times_html
from .variants import show_value

MANY_PAIRS = 12  # pairs that get a line each; a table has them all
CURVE_FROM = 3  # evaluations that make a curve


def write_page(outcome: Outcome, path: Path) -> Path:
    """Writes the page of a comparison.

    Raises:
        ValueError: it cannot be written there.
    """
    if path.is_dir():
        raise ValueError(f"--output {path}: is a directory; expected the name of an .html file")
    page = render_page(outcome)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--output {path}: {error.strerror}; expected a file that can be written") from error
    return path


def render_page(outcome: Outcome) -> str:
    """Returns the whole page."""
    body = "".join(
        (
            _header(outcome),
            _verdict(outcome),
            _performance(outcome),
            _differences(outcome),
            _seeds(outcome),
            _curves(outcome),
            _training(outcome),
            _settings(outcome),
            _left_out(outcome),
            _method(outcome),
            f"<footer>Made by grpokit {escape(VERSION)}</footer>",
        )
    )
    return document(_title(outcome), body, CSS)


def _title(outcome: Outcome) -> str:
    count = len(outcome.variants)
    options = list(outcome.settings)
    what = f" of {options[0]}" if len(options) == 1 else ""
    return f"{count} variants{what}" if count > 1 else "One variant"


def _header(outcome: Outcome) -> str:
    """Shows what is compared, and what all runs have in common."""
    runs = [run for variant in outcome.variants for run in variant.runs.values()]
    config = runs[0].config
    dataset = config.get("dataset") or []
    shared = [config.get("model"), *(dataset if isinstance(dataset, list) else [dataset])]
    facts = (
        [str(value) for value in shared if value] if not {"model", "dataset"} & set(outcome.settings) else []
    )
    facts.append(f"{len(runs)} runs")
    return (
        f'<header><p class="eyebrow">grpokit comparison</p><h1>{escape(_title(outcome))}</h1>'
        f'<p class="facts">{" · ".join(map(escape, facts))}</p></header>'
    )


def _verdict(outcome: Outcome) -> str:
    text = caution(outcome)
    note = f'<p class="note">{escape(text)}</p>' if text else ""
    return f'<p class="verdict">{escape(verdict(outcome))}</p>{note}'


def _colours(outcome: Outcome) -> dict[str, str]:
    """Returns label → a colour of the plots. With many variants, all have the same colour."""
    if len(outcome.variants) > FEW:
        return {variant.label: PALETTE[0] for variant in outcome.variants}
    return {variant.label: colour for variant, colour in zip(outcome.variants, PALETTE, strict=False)}


def _swatch(outcome: Outcome) -> Callable[[str], str]:
    """Returns a function that renders a variant's name after its colour; with many variants, the name alone."""
    colours = _colours(outcome)
    if len(outcome.variants) > FEW:
        return escape
    return lambda label: f'<i class="swatch" style="--key:var({COLOURS[colours[label]]})"></i>{escape(label)}'


# --------------------------------------------------------------------------- scores and differences


def _performance(outcome: Outcome) -> str:
    colours = _colours(outcome)
    strips = [
        Strip(
            name=single.name,
            note="1 seed" if single.seeds == 1 else f"{single.seeds} seeds",
            figure=decimal(single.middle),
            interval=show_interval(single.low, single.high),
            points=tuple(outcome.scores[single.name].values()),
            middle=single.middle,
            low=single.low,
            high=single.high,
            colour=COLOURS[colours[single.name]],
        )
        for single in by_score(outcome)
    ]
    note = (
        f"A run's score: {outcome.scored}; never the best of its curve. Each circle is a seed. The bar is the mean of the middle "
        "half of the seeds. The line is its 95 % bootstrap interval, for display alone."
    )
    return (
        f"<section><h2>Final performance</h2><p class='note'>{escape(note)}</p>"
        f"{strips_html(strips, 'score of each variant')}</section>"
    )


def _differences(outcome: Outcome) -> str:
    pairs = sorted_pairs(outcome.statistics.pairs)
    if not pairs:
        return ""
    shown = [pair for pair in pairs if not math.isnan(pair.difference)][:MANY_PAIRS]
    strips = []
    for pair in shown:
        higher, lower, difference, low, high = ordered(pair, outcome.statistics.baseline is not None)
        one, other = outcome.scores[higher], outcome.scores[lower]
        strips.append(
            Strip(
                name=f"{higher} − {lower}",
                note=f"{pair_note(pair)}, p {show_p(pair.adjusted)}",
                figure=decimal(difference),
                interval=show_interval(low, high),
                points=tuple(one[seed] - other[seed] for seed in one if seed in other),
                middle=difference,
                low=low,
                high=high,
                colour="--blue" if pair.different else "--grey",
            )
        )
    most = f" The {len(shown)} pairs with the smallest p are drawn." if len(pairs) > len(shown) else ""
    corrected = (
        f", corrected by Holm for {outcome.statistics.tests} comparisons"
        if outcome.statistics.tests > 1
        else ""
    )
    note = (
        "Runs of one seed see the same prompts in the same order, the same sampling noise and the same initial weights, so they "
        f"are compared pair by pair. Each circle is a seed. The line is the {confidence(outcome)} interval of that difference, "
        f"not corrected. Blue: the paired t-test calls it different{corrected}.{most}"
    )
    matrix = ""
    if len(outcome.variants) > FEW and outcome.statistics.baseline is None:
        legend = "Blue: the row's variant scores higher than the column's. Red: lower. Pale: they can't be told apart."
        matrix = f"<h3 class='apart'>Every variant against every other</h3><p class='note'>{legend}</p>{matrix_html(outcome)}"
    opened = "" if len(pairs) > MANY_PAIRS else " open"
    return (
        f"<section><h2>Differences between variants</h2><p class='note'>{escape(note)}</p>"
        f"{strips_html(strips, 'difference of each pair', has_zero=True) if strips else ''}{matrix}"
        f"<details class='apart'{opened}><summary>All {len(pairs)} pairs in figures</summary>{pairs_html(outcome)}</details>"
        "</section>"
    )


def _seeds(outcome: Outcome) -> str:
    """Shows how many seeds would tell some differences apart."""
    plan = outcome.statistics.needed
    if not plan:
        return ""
    cards = "".join(
        f"<div class='card'><dt>a difference of {escape(decimal(difference))}</dt>"
        f"<dd>{escape(show_seeds(needed))}<small>seeds of each variant</small></dd></div>"
        for difference, needed in plan
    )
    spread = statistics.median(pair.spread for pair in outcome.statistics.pairs if pair.spread > 0)
    note = (
        "How many seeds find a difference with a probability of 80 %, at the level that the hardest of the comparisons needs, if "
        f"paired differences spread as they do here (standard deviation {decimal(spread)}, the median over pairs). "
        "It is itself estimated from a few seeds: take the number as an order of magnitude."
    )
    return (
        f"<section><h2>How many seeds would tell</h2><p class='note'>{escape(note)}</p>"
        f"<dl class='cards'>{cards}</dl></section>"
    )


# --------------------------------------------------------------------------- curves and training


def _curves(outcome: Outcome) -> str:
    held_out = outcome.metric if outcome.metric.startswith("eval/") else "eval/reward"
    runs = [run for variant in outcome.variants for run in variant.runs.values()]
    plots = []
    if any(len(series(run, held_out)[0]) >= CURVE_FROM for run in runs):
        plots.append(_plot(outcome, held_out, "Held-out", "evaluation", False))
    trained = "reward" if outcome.metric.startswith("eval/") else outcome.metric
    plots.append(_plot(outcome, trained, "Training", "training", True))
    shown = "".join(plots)
    if not shown:
        return ""
    grey = " Grey: the mean of all variants." if len(outcome.variants) > FEW else ""
    note = f"Lines: the mean over seeds. Bands: the lowest to the highest seed.{grey}"
    return f"<section><h2>Curves</h2><p class='note'>{note}</p>{shown}</section>"


def _plot(outcome: Outcome, metric: str, where: str, key: str, is_noisy: bool) -> str:
    """Shows the curves of one metric: in one plot for a few variants, in a plot each for many."""
    found = [(variant.label, curve_of(variant, metric, is_noisy)) for variant in outcome.variants]
    curves = [(name, curve) for name, curve in found if curve is not None]
    if not curves:
        return ""
    title = f"{where}: {metric}{', rolling mean' if is_noisy else ''}"
    if len(curves) > FEW:
        return _small_plots(outcome, curves, title, key)
    colours = _colours(outcome)
    coloured = [(name, colours[name], curve) for name, curve in curves]
    drawn = [
        (size, *draw_together(coloured, key, size, _describe(title, curves))) for size in ("wide", "narrow")
    ]
    plots = "".join(f'<div class="on-{size}">{svg}</div>' for size, svg, _ in drawn)
    return (
        f'<figure class="plot" id="plot-{key}" style="margin-bottom:16px"><h3>{escape(title)}</h3>'
        f"{legend_html(drawn[0][2])}{plots}</figure>"
    )


def _small_plots(outcome: Outcome, curves: list[tuple[str, Curve]], title: str, key: str) -> str:
    order = [single.name for single in by_score(outcome)]
    curves = sorted(curves, key=lambda curve: order.index(curve[0]))
    figures = "".join(
        f'<figure class="plot"><h3>{escape(name)}</h3>'
        f"{draw_apart(curves, key, place, _describe(f'{title}, {name}', curves[place : place + 1]))}</figure>"
        for place, (name, _) in enumerate(curves)
    )
    return f'<h3 class="apart">{escape(title)}</h3><div class="small" id="plot-{key}">{figures}</div>'


def _describe(title: str, curves: list[tuple[str, Curve]]) -> str:
    """Describes curves in words, for readers who cannot see them."""
    parts = [
        f"{name}: {curve[1][0]:.3g} at step {curve[0][0]:g}, {curve[1][-1]:.3g} at step {curve[0][-1]:g}"
        for name, curve in curves
    ]
    return f"{title}. {'; '.join(parts)}."


def _training(outcome: Outcome) -> str:
    swatch = _swatch(outcome)
    note = (
        "Health: means over the last quarter of the steps and over seeds. Time and tokens: means over seeds. "
        "Times are those of the machine, with whatever else it did."
    )
    return (
        f"<section><h2>How they trained</h2><p class='note'>{note}</p>"
        f"{health_html(outcome, swatch)}<h3 class='apart'>Time and tokens</h3>{times_html(outcome, swatch)}</section>"
    )


def _settings(outcome: Outcome) -> str:
    options = list(outcome.settings)
    if not options:
        return ""
    if [variant.label for variant in outcome.variants] == [
        show_value(x) for x in outcome.settings[options[0]]
    ]:
        note = f"<code>{escape(options[0])}</code> alone; the others are the same, apart from those of logging and storage."
        return f"<section><h2>Settings that differ</h2><p class='note'>{note}</p></section>"
    note = "All options that differ between variants, apart from those of logging and storage. The others are the same."
    return (
        f"<section><h2>Settings that differ</h2><p class='note'>{note}</p>"
        f"{settings_html(outcome, _swatch(outcome))}</section>"
    )


def _left_out(outcome: Outcome) -> str:
    if not outcome.left_out:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in outcome.left_out)
    return f"<section><h2>Runs left out</h2><ul class='left-out'>{items}</ul></section>"


def _method(outcome: Outcome) -> str:
    """Explains the figures, and what they can't show."""
    alpha = f"{100 * outcome.statistics.alpha:.3g} %"
    sign = (
        ""
        if is_gain(outcome.metric)
        else " The page doesn't know whether a higher value of this metric is better."
    )
    terms = {
        "The test": "A paired t-test of the differences between two variants over the seeds that both have. For normal "
        "differences its size is exact at any number of seeds, from two on. Holm's correction bounds the probability of "
        f"calling any pair different by {alpha} where all are equal, however many pairs there are.",
        "The middle half": "The interquartile mean (arXiv:2108.13264): the mean without the lowest and the highest quarter "
        "of the seeds, rounded down. Its interval has the percentiles of 2,000 bootstrap samples. Bootstrap intervals are "
        "optimistic below ten seeds, and nothing here is decided by them.",
        "Probability of improvement": "The share of all pairs of runs, whatever their seeds, in which the first scores higher; a "
        "tie counts half. 50 % is no improvement.",
        "What it can't show": "That two variants are equal: a difference that can't be told apart may be there, and smaller than "
        "these seeds can find. And nothing about other models, data, lengths or learning rates than those of these runs: a "
        f"variant that needs another learning rate is compared at this one.{sign}",
    }
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return f"<section><h2>How to read this</h2><dl class='method'>{items}</dl></section>"
