"""The cards at the top of the page: the outcome of the run in a few numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ...common.figures import set_names
from .data import RunData
from .markup import decimal, escape, percent, seconds


class Card(NamedTuple):
    """A number and its title.

    Example:
        >>> card = Card("Reward", "0.930", "training", before="0.363")
    """

    title: str
    value: str
    note: str
    before: str = ""  # the value at the start, if it has changed


def cards_html(run: RunData) -> str:
    """Returns the cards as one list of terms."""
    items = "".join(_card(card) for card in cards_of(run))
    return f'<dl class="cards">{items}</dl>'


def cards_of(run: RunData) -> list[Card]:
    """Returns the reward, the evaluations and the progress of a run."""
    return [*_reward(run), *_evaluations(run), *_progress(run)]


def _card(card: Card) -> str:
    before = f"<span>{escape(card.before)} →</span> " if card.before else ""
    return (
        f'<div class="card"><dt>{escape(card.title)}</dt>'
        f"<dd>{before}{escape(card.value)}<small>{escape(card.note)}</small></dd></div>"
    )


def _reward(run: RunData) -> list[Card]:
    """Returns the first → last reward, each a mean over a few steps, because the reward of one step is noisy."""
    _, values = run.metric("reward")
    if not values:
        return []
    count = max(1, min(10, len(values) // 10))
    first, last = sum(values[:count]) / count, sum(values[-count:]) / count
    if len(values) == 1:
        return [Card("Reward", decimal(last), "training, one step")]
    over = f"first and last {count} steps" if count > 1 else "first and last step"
    return [Card("Reward", decimal(last), f"training, {over}", decimal(first))]


def _evaluations(run: RunData) -> list[Card]:
    """Returns the held-out figures, before → after."""
    names = {name for row in run.evaluations for name in row}
    many = sorted(
        (name for name in names if re.fullmatch(r"eval/pass@\d+", name) and name != "eval/pass@1"),
        key=lambda name: int(name.removeprefix("eval/pass@")),
    )[-1:]
    titles = {
        "eval/pass@1": "pass@1, sampled",
        "eval/pass@1_greedy": "pass@1, greedy",
        **{n: n.removeprefix("eval/") for n in many},
        **{f"eval/{name}/pass@1": f"{name}, pass@1" for name in set_names(names)},
    }
    wanted = [name for name in titles if name in names]
    shown: list[tuple[str, str, Callable[[float], str]]] = [(name, titles[name], percent) for name in wanted]
    if not wanted and "eval/reward" in names:
        shown = [("eval/reward", "Held-out reward", decimal)]
    cards = []
    for name, title, form in shown:
        steps, values = run.evaluation(name)
        if len(values) == 1:
            cards.append(Card(title, form(values[0]), f"held-out, step {steps[0]}"))
        else:
            note = f"held-out, step {steps[0]} → {steps[-1]}"
            cards.append(Card(title, form(values[-1]), note, form(values[0])))
    return cards


def _progress(run: RunData) -> list[Card]:
    """Returns the finished steps and their wall time."""
    done = run.num_done()
    wanted = run.config.get("max_steps")
    unfinished = isinstance(wanted, int) and done < wanted
    note = f"of {wanted:,}, not finished" if unfinished else "all done" if wanted else ""
    cards = [Card("Steps", f"{done:,}", note)]
    _, times = run.metric("time/step")
    if times:
        total = sum(times)
        cards.append(
            Card("Wall time", seconds(total), f"{seconds(total / len(times))} a step, without evaluations")
        )
    return cards
