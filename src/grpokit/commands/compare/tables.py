"""The tables of a comparison's page: pairs, health, time, settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...runs.report.markup import decimal, escape, number, percent, seconds
from .outcome import Outcome, VariantRuns
from .statistics import Pair
from .summary import by_score, ordered, pair_note, show_interval, show_p, show_seeds, sorted_pairs
from .variants import show_value

LAST_QUARTER = 4  # health is the mean over the last quarter of the steps


class Health(NamedTuple):
    """A metric that tells how a variant trained. Example: `Health("entropy", "entropy", decimal)`"""

    metric: str
    title: str
    show: Callable[[float], str]


HEALTH = (
    Health("clip_ratio/region_mean", "tokens clipped", percent),
    Health("gate/mean", "gate, mean", decimal),
    Health("ratio/ess", "effective sample size", percent),
    Health("entropy", "entropy, nats per token", decimal),
    Health("kl", "KL to the reference", decimal),
    Health("grad_norm", "gradient norm", number),
    Health("completions/mean_length", "completion length", number),
    Health("completions/clipped_ratio", "cut off at the limit", percent),
    Health("frac_reward_zero_std", "groups that teach nothing", percent),
)


def table_html(headings: Sequence[str], rows: Sequence[Sequence[str]], css: str = "table") -> str:
    """Returns a table that scrolls in its own box. The cells are HTML; the first of a row is its heading."""
    head = "".join(f"<th scope='col'>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="{css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs_html(outcome: Outcome) -> str:
    """Returns all pairs, those with the smallest p first."""
    headings = (
        "pair",
        "difference",
        f"{confidence(outcome)} interval",
        "p",
        "p, Holm",
        "found",
        "probability of improvement",
        "common seeds",
        "seeds to find it",
    )
    with_baseline = outcome.statistics.baseline is not None
    return table_html(
        headings,
        [_pair_row(pair, with_baseline) for pair in sorted_pairs(outcome.statistics.pairs)],
        "table pairs",
    )


def _pair_row(pair: Pair, with_baseline: bool) -> list[str]:
    higher, lower, difference, low, high = ordered(pair, with_baseline)
    improvement = pair.improvement if higher == pair.first else 1 - pair.improvement
    css = "tag yes" if pair.different else "tag"
    return [
        f"{escape(higher)} − {escape(lower)}",
        "–" if math.isnan(difference) else decimal(difference),
        show_interval(low, high),
        show_p(pair.p),
        show_p(pair.adjusted),
        f'<td class="text"><span class="{css}">{escape(pair_note(pair))}</span></td>',
        "–" if math.isnan(improvement) else f"{100 * improvement:.0f}%",
        str(pair.seeds),
        show_seeds(pair.needed) if pair.spread > 0 else "–",
    ]


def matrix_html(outcome: Outcome) -> str:
    """Returns a square of all variants, the best first: blue where the row's is higher than the column's, red where lower."""
    names = [single.name for single in by_score(outcome)]
    found = {}
    for pair in outcome.statistics.pairs:
        higher, lower, difference, *_ = ordered(pair)
        words = f"{higher} − {lower}: {decimal(difference)}, p {show_p(pair.adjusted)}, {pair_note(pair)}"
        found[higher, lower] = ("up" if pair.different else "", words)
        found[lower, higher] = ("down" if pair.different else "", words)
    rows = [
        [
            f"<i>{place}</i>{escape(name)}",
            *(
                _cell(*found.get((name, other), ("none", "the same" if name == other else "not compared")))
                for other in names
            ),
        ]
        for place, name in enumerate(names, 1)
    ]
    return table_html(["", *map(str, range(1, len(names) + 1))], rows, "matrix")


def _cell(css: str, words: str) -> str:
    mark = {"up": "higher", "down": "lower"}.get(css, "")
    return f'<td class="{css}" title="{escape(words)}"{f" aria-label={mark}" if mark else ""}></td>'


def health_html(outcome: Outcome, swatch: Callable[[str], str]) -> str:
    """Returns how each variant trained: means over the last quarter of the steps, over seeds."""
    shown = [
        health for health in HEALTH if any(_late(v, health.metric) is not None for v in outcome.variants)
    ]
    rows = [
        [
            swatch(variant.label),
            *(_shown(_late(variant, health.metric), health.show) for health in shown),
        ]
        for variant in outcome.variants
    ]
    return table_html(["variant", *(health.title for health in shown)], rows) if shown else ""


def times_html(outcome: Outcome, swatch: Callable[[str], str]) -> str:
    """Returns the time and the tokens of each variant, the mean over seeds. A step's time is the median of its run."""
    headings = (
        "variant",
        "steps",
        "seconds of a median step",
        "time of a run",
        "tokens of a run",
        "tokens a second",
    )
    rows = []
    for variant in outcome.variants:
        steps = _mean([float(run.steps[-1]["step"]) for run in variant.runs.values()])
        times = [values for _, values in variant.values("time/step") if values]
        tokens = [sum(values) for _, values in variant.values("num_tokens") if values]
        speeds = [_mean(values) for _, values in variant.values("tokens_per_second") if values]
        rows.append(
            [
                swatch(variant.label),
                _shown(steps, lambda value: f"{value:,.0f}"),
                _shown(_mean([statistics.median(each) for each in times]), lambda value: f"{value:.3g}"),
                _shown(_mean([sum(each) for each in times]), seconds),
                _shown(_mean(tokens), lambda value: f"{value:,.0f}"),
                _shown(_mean([speed for speed in speeds if speed]), lambda value: f"{value:,.0f}"),
            ]
        )
    return table_html(headings, rows)


def settings_html(outcome: Outcome, swatch: Callable[[str], str]) -> str:
    """Returns the options in which variants differ, a row for each variant."""
    rows = [
        [
            swatch(variant.label),
            *(
                f'<td class="text cell">{escape(show_value(values[place]))}</td>'
                for values in outcome.settings.values()
            ),
        ]
        for place, variant in enumerate(outcome.variants)
    ]
    return table_html(["variant", *outcome.settings], rows, "table texts")


def _late(variant: VariantRuns, metric: str) -> float | None:
    """Returns a metric's mean over the last quarter of the steps and over seeds; None where the variant has none."""
    means = []
    for _, values in variant.values(metric):
        if values:
            means.append(_mean(values[-max(1, len(values) // LAST_QUARTER) :]))
    return _mean([mean for mean in means if mean is not None])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else escape(show(value))


def confidence(outcome: Outcome) -> str:
    """Returns the confidence of the intervals of differences, such as "95 %"."""
    return f"{100 * (1 - outcome.statistics.alpha):.3g} %"
