"""Says what a run is about to do, before it does it."""

from __future__ import annotations

from ...config.options import TrainConfig


def batch_plan(config: TrainConfig, ranks: int = 1) -> str:
    """The step in one line: what is sampled, how often it is learned from, and in what pieces."""
    p, g, u, n = (
        config.prompts_per_step,
        config.num_generations,
        config.updates_per_step,
        config.num_iterations,
    )
    return (
        f"plan: {_count(p, 'prompt')} × {g} = {p * g} completions a step, {_count(u, 'update')} of "
        f"{p * g // u} completions × {_count(n, 'iteration')}, {_ranks(config, ranks)}, "
        f"≤ {config.micro_batch_tokens:,} tokens a micro-batch, {_count(config.max_steps, 'step')}"
    )


def _ranks(config: TrainConfig, ranks: int) -> str:
    if ranks == 1:
        return "1 process"
    copies = ranks // config.shard_size if config.shard_size else 1
    return f"{ranks} ranks" + (f" ({copies} copies of the weights)" if copies > 1 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
