"""Measures a step: lengths and endings of its completions, their age, and wall time by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..parallel import ALONE, World
from ..types import Metric, Metrics, RolloutGroup


def rollout_metrics(groups: Sequence[RolloutGroup]) -> Metrics:
    """Lengths, cut-offs and entropy of a step's completions."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts], dtype=torch.float64)
    cut = torch.tensor([r.finish_reason == "length" for r in rollouts])
    prompts = sum(len(group.prompt.ids) * len(group.rollouts) for group in groups)
    return {
        "completions/mean_length": Metric.mean(lengths),
        "completions/min_length": Metric.min(lengths),
        "completions/max_length": Metric.max(lengths),
        "completions/clipped_ratio": Metric.mean(cut),
        "completions/mean_terminated_length": Metric.mean(lengths[~cut]),
        "entropy": Metric.mean(torch.cat([r.entropies for r in rollouts])),
        "num_tokens": Metric.sum(lengths.sum() + prompts),
    }


class Clock:
    """Wall time by phase: `with clock("rollout"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def metrics(self, completion_tokens: float, world: World = ALONE) -> Metrics:
        """`time/*`, the largest of any rank, and completion tokens of all ranks per second of the step."""
        seconds = {**dict.fromkeys(("step", "rollout", "reward", "learn", "sync"), 0.0), **self.seconds}
        times = {f"time/{phase}": Metric.max(torch.tensor([value])) for phase, value in seconds.items()}
        times = world.join_metrics(times)
        return times | {"tokens_per_second": Metric.share(completion_tokens, times["time/step"].value)}
