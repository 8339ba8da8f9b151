"""Rewards → advantages: each completion against its group, in float64 over the whole step (LOSSES: "Advantages")."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .types import RolloutGroup

EPSILON = 1e-4  # added to a standard deviation before dividing by it; TRL's number, so that values carry over


def with_advantages(
    groups: Sequence[RolloutGroup], estimator: str = "group", scale_rewards: str = "group"
) -> list[RolloutGroup]:
    """Groups with `advantages` [G] float64. A completion without a reward gets 0 and may not be trained on.

    `estimator`: `group`, d = R − mean of its group, divided as `scale_rewards` says (`group`: the group's unbiased
    std + 1e-4; `batch`: the step's; `none`); or `rloo`, R − mean of the others. A group whose rewards are all
    equal has advantages of exactly 0: in floating point its deviations from the mean may not be.
    """
    step = torch.cat([_rewards(group) for group in groups]) if groups else torch.empty(0, dtype=torch.float64)
    step = step[~step.isnan()]
    batch_std = step.std() if len(step) > 1 else torch.zeros((), dtype=torch.float64)
    return [_one(group, estimator, scale_rewards, batch_std) for group in groups]


def _one(group: RolloutGroup, estimator: str, scale_rewards: str, batch_std: Tensor) -> RolloutGroup:
    reward = _rewards(group)
    valid = ~reward.isnan()
    advantages = torch.zeros_like(reward)
    r = reward[valid]
    if len(r) > 1 and r.max() > r.min():
        centred = r - r.mean()
        if estimator == "rloo":
            advantages[valid] = centred * len(r) / (len(r) - 1)  # R − mean of the others
        else:
            scale = {"group": r.std() + EPSILON, "batch": batch_std + EPSILON, "none": 1.0}[scale_rewards]
            advantages[valid] = centred / scale
    rollouts = tuple(
        rollout if ok else dataclasses.replace(rollout, trainable=torch.zeros_like(rollout.trainable))
        for rollout, ok in zip(group.rollouts, valid.tolist(), strict=True)
    )
    return dataclasses.replace(group, advantages=advantages, rollouts=rollouts)


def _rewards(group: RolloutGroup) -> Tensor:
    if group.reward is None:
        raise ValueError(f"{group.prompt.source}: the group has no rewards yet; score it first")
    return group.reward
