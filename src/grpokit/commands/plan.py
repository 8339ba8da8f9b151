"""Prints a plan as tables of 80 columns, and says what to change if it does not fit."""

from __future__ import annotations

from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..training.plan.estimate import ALWAYS, HEADROOM, LEARNING, SAMPLING, Plan, again, prompt_tokens

MOST_RANKS = 4096  # more are not tried


def tables(plan: Plan) -> list[RenderableType]:
    """Returns what `grpokit plan` prints."""
    received = [_traffic(plan)] if plan.config.ranks > 1 else []
    return [_summary(plan), _memory(plan), *received, *_notes(plan)]


def remedies(plan: Plan) -> list[str] | None:
    """Returns flags that make the plan fit, tried one after the other on its largest phase; None if none do."""
    changed: dict[str, Any] = {}
    while plan.peak > plan.room:
        change = _next_change(plan)
        if change is None:
            return None
        changed |= change
        plan = again(plan, **change)
    return [f"--{name}" if value is True else f"--{name} {value}" for name, value in changed.items()]


def _next_change(plan: Plan) -> dict[str, Any] | None:
    """Returns the next flag to try: one of the batch if its share is too large, else more ranks for the weights."""
    config = plan.config
    phase = max((part.phase for part in plan.memory), key=plan.phase)
    of_batch = {LEARNING: ("activations", "head:"), SAMPLING: ("key-value", "their prompts", "picking")}
    movable = sum(
        p.bytes for p in plan.memory if p.phase == phase and p.name.startswith(of_batch.get(phase, ("\0",)))
    )
    if plan.phase(phase) - movable <= plan.room:
        longest = prompt_tokens(plan.config) + plan.config.max_completion_length
        if phase == LEARNING and not config.gradient_checkpointing:
            return {"gradient_checkpointing": True}
        if phase == LEARNING and config.micro_batch_tokens > longest:
            return {"micro_batch_tokens": max(longest, config.micro_batch_tokens // 2)}
        if phase == SAMPLING and config.rollout_batch_size > 1:
            together = min(config.rollout_batch_size, config.prompts_per_step * config.num_generations)
            return {"rollout_batch_size": together // 2}
    if config.shard_size:
        return {"shard_size": 0}
    return {"ranks": config.ranks * 2} if config.ranks < MOST_RANKS else None


def _summary(plan: Plan) -> Table:
    config, sizes, batch = plan.config, plan.sizes, plan.batch
    copies = config.ranks // (config.shard_size or config.ranks)
    held = f", {copies} copies of the weights" if copies > 1 else ""
    most = "at most " if len({group.numel for group in sizes.layers}) > 1 else ""
    compute, master = (str(t).removeprefix("torch.") for t in (plan.types.compute, plan.types.master))
    updates, passes = config.updates_per_step, config.num_iterations
    completions = f"{config.prompts_per_step} prompts × {config.num_generations}"
    table = _table(f"{config.model} on {_several(config.ranks, 'rank')}{held}", "left")
    table.add_row("parameters", f"{_count(sizes.numel)}, {_several(len(sizes.layers), 'layer')}")
    if plan.config.lora_r:
        table.add_row("  trained", f"{_count(sizes.trained.numel)}, an adapter of rank {plan.config.lora_r}")
    table.add_row("  a layer", most + _count(sizes.largest_layer))
    table.add_row("  embedding, norm, head", _count(sizes.root.numel))
    table.add_row("computes in", f"{compute}; parameters and optimizer {master}")
    table.add_row("a step", f"{completions} = {config.prompts_per_step * config.num_generations} completions")
    table.add_row("  is learned from in", f"{_several(updates, 'update')} × {_several(passes, 'iteration')}")
    table.add_row("an update, on a rank", f"{_several(batch.rows, 'row')} of {batch.length:,} tokens")
    limit, fill = config.micro_batch_tokens, batch.fill(config.micro_batch_tokens)
    table.add_row("  in micro-batches", f"{batch.micro_batches} of at most {limit:,} tokens, {fill:.0%} full")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory of a rank, GiB")
    for phase in dict.fromkeys(part.phase for part in plan.memory):
        table.add_row(Text(phase, "bold"))
        for part in plan.memory:
            if part.phase == phase:
                table.add_row(f"  {part.name}", _gib(part.bytes))
        with_state = "" if phase == ALWAYS else ", with what is always there"
        table.add_row(f"  sum{with_state}", _gib(plan.phase(phase)), end_section=True)
    table.add_row(Text("peak", "bold"), Text(_gib(plan.peak), "bold"))
    return table


def _traffic(plan: Plan) -> Table:
    table = _table("what a rank receives in a step, GiB")
    for name, size in plan.traffic.items():
        if size:
            table.add_row(name, _gib(size))
    table.add_section()
    table.add_row(Text("sum", "bold"), Text(_gib(sum(plan.traffic.values())), "bold"))
    return table


def _notes(plan: Plan) -> list[str]:
    notes = [f"A checkpoint takes {_gib(plan.host)} GiB of memory on the host of rank 0."]
    if plan.activations.failure:
        notes.append(
            "Activations are from a formula for dense layers, not measured: the forward does not run on shapes alone "
            f"({plan.activations.failure})."
        )
    memory = plan.config.device_memory
    if not plan.room:
        return notes
    if plan.peak <= plan.room:
        return [*notes, f"It fits in {memory:g} GiB, with {1 - plan.peak / memory / 2**30:.0%} to spare."]
    found = remedies(plan)
    would = (
        f"This would: {' '.join(found)}"
        if found
        else f"No flags and no {MOST_RANKS} ranks would make it fit."
    )
    return [*notes, f"It does not fit in {memory:g} GiB, of which {HEADROOM:.0%} should stay free. {would}"]


def _table(title: str, justify: Literal["left", "right"] = "right") -> Table:
    table = Table(title=title, title_justify="left", show_header=False, title_style="bold")
    table.add_column()
    table.add_column(justify=justify)
    return table


def _several(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _count(number: int) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _gib(size: float) -> str:
    gib = size / 2**30
    return f"{gib:,.1f}" if gib >= 10 else f"{gib:.2f}" if gib >= 0.01 else f"{gib:.1g}"
