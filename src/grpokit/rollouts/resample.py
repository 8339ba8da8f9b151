"""Which completions of a step are learned from: groups without spread make way, truncated completions may be left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..types import Metric, Metrics, Prompt, RolloutGroup


def resample(
    prompts_from: Callable[[int, int], list[Prompt]],
    complete: Callable[[Sequence[Prompt]], list[RolloutGroup]],
    step: int,
    size: int,
    max_resample_times: int,
    weights: Sequence[float],
) -> tuple[list[RolloutGroup], Metrics]:
    """A step's `size` groups, and how many made way: dynamic sampling (DAPO, arXiv 2503.14476, section 3.2).

    Groups whose rewards are all equal teach nothing; further prompts take their place, up to `max_resample_times`
    times. What is still missing then is filled up with them, so that a step has its size. Each step has a stretch of the
    endless order to itself, used up or not: where a step begins depends on its number alone. `prompts_from(start, count)`
    gives prompts of that order, `complete` samples and scores them. `weights` are of the reward functions: one that has
    none is only watched.
    """
    start = first_position(step, size, max_resample_times)
    groups = complete(prompts_from(start, size))
    kept, flat = _divided(groups, weights)
    for times in range(1, max_resample_times + 1):
        missing = size - len(kept)
        if missing == 0:
            break
        more, too = _divided(complete(prompts_from(start + times * size, missing)), weights)
        kept, flat = kept + more, flat + too
    if max_resample_times == 0:
        return groups, {}
    in_vain = len(kept) + len(flat) - size
    chosen = sorted(kept + flat[: size - len(kept)], key=lambda group: group.prompt.position)
    return chosen, {"resampled_groups": Metric.sum(torch.tensor(float(in_vain)))}


def first_position(step: int, size: int, max_resample_times: int) -> int:
    """Where step `step`, counted from 0, begins in the endless order of prompts; its first round is `size` of them."""
    return step * size * (1 + max_resample_times)


def _divided(
    groups: Sequence[RolloutGroup], weights: Sequence[float]
) -> tuple[list[RolloutGroup], list[RolloutGroup]]:
    """Groups whose rewards differ, and the others."""
    differ = [_has_spread(group, weights) for group in groups]
    return (
        [group for group, has in zip(groups, differ, strict=True) if has],
        [group for group, has in zip(groups, differ, strict=True) if not has],
    )


def _has_spread(group: RolloutGroup, weights: Sequence[float]) -> bool:
    """Of the reward, or of any one of its functions that has a weight: gdpo learns from each by itself."""
    assert group.reward is not None  # scored
    assert group.rewards is not None
    weighed = [column for column, weight in zip(group.rewards.unbind(1), weights, strict=True) if weight]
    columns = [group.reward, *weighed]
    present = [column[~column.isnan()] for column in columns]
    return any(len(values) > 1 and bool(values.max() > values.min()) for values in present)
