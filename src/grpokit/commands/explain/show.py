"""Prints the table and its rows in a terminal. Everything except the notes comes from the losses themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...common.console import console
from ...losses import LOSSES, Counts, Loss, LossBatch, UpdateStats, policy_loss, sequence_weights
from ...runs.metrics import METRICS, declared_name
from .curves import compose
from .notes import notes_of
from .plain_text import plain_text

COUPLING_TEXTS = {
    "token": "nothing: any subset of the update's tokens is a slice by itself",
    "sequence": "the tokens of a sequence: a slice holds whole sequences, unless a statistics pass came first",
    "group": "the sequences of a group: needs a statistics pass over the update",
    "step": "all tokens of the update: needs a statistics pass over the update",
}
# With the statistics of the update every loss is the same under any cut, so that is not listed as a distinction.
INVARIANCES = {
    "tokens": "any cut, down to single tokens",
    "sequences": "any cut between sequences",
    "stats": "any cut, once the statistics are gathered",
    "ranks": "any number of ranks",
}


def list_losses(out: Console | None = None) -> None:
    """Prints the table: every row of LOSSES with its parts, defaults, coupling, paper and summary."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    table.add_column("loss_type", no_wrap=True, style="cyan")
    table.add_column("ratio × surrogate × reduction, defaults", ratio=3)
    table.add_column("what it does, what it couples, paper", ratio=3)
    for name, row in LOSSES.items():
        loss = compose(name)
        parts = f"{row.ratio_level} × {row.surrogate} × {row.reduction}\n"
        origin = f"\ncouples {loss.coupling} · {row.paper}"
        options = options_text(loss, off=False)
        table.add_row(
            name, Text.assemble(parts, (options, "dim")), Text.assemble(row.summary, (origin, "dim"))
        )
    (out or console).print(table)


def show_loss(name: str, out: Console | None = None) -> None:
    """Prints everything about one loss: formula, parts, defaults, couplings, metrics, traps, paper.

    Raises:
        ValueError: the name is not in the table.
    """
    loss, notes = compose(name), notes_of(name)
    row = LOSSES[name]
    title = Text.assemble((name, "bold"), "   ", row.summary)
    formula = Text("\n".join(plain_text(line) for line in formula_lines(loss)), style="cyan")
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, content in _facts(loss):
        grid.add_row(label, content)
    if notes and notes.traps:
        grid.add_row("traps", _bullets(notes.traps))
    grid.add_row("paper", Text(row.paper))
    problem = [Text(notes.problem), Text()] if notes else []
    (out or console).print(Group(title, Text(), *problem, Padding(formula, (0, 0, 1, 2)), grid))


def _facts(loss: Loss) -> Iterator[tuple[str, Any]]:
    yield "parts", Text(f"{loss.ratio_level} ratio × {loss.surrogate.name} × {loss.reduction}")
    yield "defaults", Text(options_text(loss) or "no options of its own")
    scaled = {
        "none": "not divided by a standard deviation",
        "batch": "divided by the step's standard deviation",
    }
    yield "advantages", Text(scaled.get(loss.scale_rewards, "divided by the group's standard deviation"))
    yield "couples", Text(COUPLING_TEXTS[loss.coupling])
    yield "unchanged by", Text("; ".join(text for key, text in INVARIANCES.items() if key in distinct(loss)))
    if loss.needs_sampler:
        yield "needs", Text("the sampler's log-probs (sampler_logps)")
    yield "logs", _metrics_grid(logged_metrics(loss))


def distinct(loss: Loss) -> frozenset[str]:
    """Returns `loss.invariances` without those that a stronger one implies."""
    found = set(loss.invariances)
    for strong, weak in (("tokens", "sequences"), ("tokens", "stats")):
        found -= {weak} if strong in found else set()
    return frozenset(found)


def formula_lines(loss: Loss) -> list[str]:
    """Returns the loss in LaTeX, one line per part."""
    return loss.formula.split("\n")


def options_text(loss: Loss, off: bool = True) -> str:
    """Formats the surrogate's options as on the command line. With `off`, options that are None are included."""
    shown = {name: value for name, value in loss.options.items() if off or value is not None}
    return ", ".join(f"{name} {option_value(value)}" for name, value in shown.items())


def option_value(value: Any) -> str:
    """Formats an option's value as a person would type it: `none` where it is off."""
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def logged_metrics(loss: Loss) -> Mapping[str, str]:
    """Returns metric → meaning for all that `policy_loss` logs of this loss, found by running it on two tokens."""
    zeros, ids = torch.zeros(2, dtype=torch.float64), torch.arange(2)
    lengths = torch.ones_like(ids)
    counts = Counts.of(lengths, torch.zeros_like(ids))
    batch = LossBatch(
        logps=zeros - 1.0,
        old_logps=zeros - 1.1,
        ref_logps=zeros - 1.2,
        sampler_logps=zeros - 1.1,
        entropies=zeros + 1.0,
        advantages=1.0 - 2.0 * ids,
        weights=sequence_weights(loss, lengths, counts, torch.zeros_like(ids)),
        sequence_ids=ids,
        group_ids=torch.zeros_like(ids),
        positions=torch.zeros_like(ids),
        lengths=lengths,
    )
    stats = UpdateStats.of(loss, batch).finish(loss) if loss.needs_stats else None
    names = policy_loss(loss, batch, stats=stats).metrics
    return {name: _meaning(name) for name in names}


def _meaning(name: str) -> str:
    declared = METRICS.get(declared_name(name))
    return "" if declared is None else declared.meaning


def _metrics_grid(metrics: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column()
    for name, meaning in metrics.items():
        grid.add_row(Text(name), Text(meaning))
    return grid


def _bullets(sentences: tuple[str, ...]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("•", Text(sentence))
    return grid
