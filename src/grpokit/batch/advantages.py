"""Turns rewards into advantages: each completion against its group, in float64, over the whole step."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..common.imports import raised_in
from ..common.text import one_line
from ..types import RolloutGroup

ESTIMATORS = ("group", "rloo", "reinforce_plus_plus", "opo", "gdpo")
SCALINGS = ("group", "batch", "none")
Estimator = Callable[..., Tensor | Sequence[float]]
"""An advantage estimator of one's own: `f(rewards)` or `f(rewards, rollouts)`.

`rewards` [G] float64 are those of a group's completions that have a reward, and `rollouts` these completions. It returns
their advantages, G finite numbers.

Example:
    >>> def centred(rewards):
    ...     return rewards - rewards.mean()
"""

EPSILON = 1e-4  # added to a standard deviation before dividing by it; TRL's number, so that values carry over


def add_advantages(
    groups: Sequence[RolloutGroup],
    estimator: str | Estimator = "group",
    scale_rewards: str = "group",
    weights: Sequence[float] | None = None,
) -> list[RolloutGroup]:
    """Adds `advantages` [G] float64 to groups. A completion without a reward gets 0 and may not be trained on.

    The estimators, with d = R − mean of its group:

    * `group`: d, divided as `scale_rewards` says (`group`: the group's unbiased std + 1e-4; `batch`: the std of the
      step's rewards + 1e-4; `none`);
    * `rloo`: R − mean of the others of its group (arXiv 2402.14740);
    * `reinforce_plus_plus`: (d − mean d) / (std d + 1e-4) over the step (2501.03262);
    * `opo`: R − Σ T·R / Σ T of the group, T the completions' trainable tokens (2505.23585);
    * `gdpo`: each reward function normalised within its group, their weighted sum, normalised over the step
      (2601.05242). `weights` [F] are those of the reward functions.

    A group whose rewards are all equal has advantages of exactly 0: in floating point its deviations from the mean
    may not be.

    Args:
        groups: the scored groups of a whole step.
        estimator: one of ESTIMATORS, or a function: see `Estimator`.
        scale_rewards: one of SCALINGS; for `group` alone.
        weights: [F], one weight for each reward function; for `gdpo` alone.

    Returns:
        The same groups, in the same order.

    Raises:
        ValueError: an unknown name, a group without rewards, or a function that returns something else than advantages.
    """
    valid = [~_rewards(group).isnan() for group in groups]
    if not isinstance(estimator, str):
        own = [_by_own(group, ok, estimator) for group, ok in zip(groups, valid, strict=True)]
        return [_with(group, a, ok) for group, a, ok in zip(groups, own, valid, strict=True)]
    if estimator not in ESTIMATORS or scale_rewards not in SCALINGS:
        raise ValueError(
            f"advantage_estimator {estimator}, scale_rewards {scale_rewards}: there are {', '.join(ESTIMATORS)}, "
            f"and {', '.join(SCALINGS)}"
        )
    raw = [_raw(group, ok, estimator, weights) for group, ok in zip(groups, valid, strict=True)]
    if estimator in ("reinforce_plus_plus", "gdpo"):
        raw = _normalised(raw, valid)
    elif estimator == "group" and scale_rewards != "none":
        raw = _scaled(raw, groups, valid, scale_rewards)
    return [_with(group, a, ok) for group, a, ok in zip(groups, raw, valid, strict=True)]


def has_signal(
    group: RolloutGroup, estimator: str | Estimator = "group", weights: Sequence[float] | None = None
) -> bool:
    """Tells whether a scored group teaches anything under an estimator: whether it gives any advantage that isn't 0.

    `gdpo` learns from each reward function by itself, so it needs one function with a weight whose rewards differ. All
    other estimators see the weighted sum alone.

    Args:
        group: a scored group.
        estimator: one of ESTIMATORS, or a function: see `Estimator`.
        weights: [F], one weight for each reward function; for `gdpo` alone.

    Returns:
        Whether dynamic sampling keeps the group.
    """
    rewards = _rewards(group)
    valid = ~rewards.isnan()
    if not isinstance(estimator, str):
        rounding = 1e-12 * max(1.0, float(rewards.nan_to_num().abs().max()))
        return bool((_by_own(group, valid, estimator).abs() > rounding).any())
    if estimator != "gdpo":
        return bool(_raw(group, valid, estimator, weights).any())
    assert group.rewards is not None  # scored
    columns = zip(group.rewards.unbind(1), weights or [1.0] * group.rewards.shape[1], strict=True)
    present = [column[~column.isnan()] for column, weight in columns if weight]
    return any(len(r) > 1 and bool(r.max() > r.min()) for r in present)


def _raw(group: RolloutGroup, valid: Tensor, estimator: str, weights: Sequence[float] | None) -> Tensor:
    """A group's advantages [G] before any scaling: 0 where there is no reward, and throughout where all are equal."""
    if estimator == "gdpo":
        return _by_function(group, weights)
    reward, lengths = _rewards(group), _lengths(group)
    advantages, r = torch.zeros_like(reward), reward[valid]
    if len(r) > 1 and r.max() > r.min():
        baseline = r.mean()
        if estimator == "opo" and lengths[valid].sum() > 0:
            baseline = (lengths[valid] * r).sum() / lengths[valid].sum()
        centred = r - baseline
        # Zeroes differences that are only rounding error; their sign would be random.
        centred[centred.abs() <= 4 * torch.finfo(r.dtype).eps * r.abs().max()] = 0
        others = len(r) / (len(r) - 1) if estimator == "rloo" else 1  # R − mean of the others
        advantages[valid] = centred * others
    return advantages


def _by_own(group: RolloutGroup, valid: Tensor, estimator: Estimator) -> Tensor:
    """The advantages [G] that a user's function gives a group; 0 where there is no reward. Raises ValueError naming it."""
    rewards = _rewards(group)[valid]
    advantages = torch.zeros_like(_rewards(group))
    if len(rewards) == 0:
        return advantages
    rollouts = [rollout for rollout, ok in zip(group.rollouts, valid.tolist(), strict=True) if ok]
    name = getattr(estimator, "__name__", type(estimator).__name__)
    try:
        wants_rollouts = len(inspect.signature(estimator).parameters) > 1
        found = estimator(rewards, rollouts) if wants_rollouts else estimator(rewards)
        values = torch.as_tensor(found, dtype=torch.float64)
    except Exception as error:
        raise ValueError(
            f"--advantage_estimator {name}: raised {type(error).__name__}: {one_line(error)} ({raised_in(error, estimator)}) "
            f"for the group of {group.prompt.source}"
        ) from error
    if values.shape != rewards.shape or not values.isfinite().all():
        raise ValueError(
            f"--advantage_estimator {name}: returned {one_line(found, 80)} for the group of {group.prompt.source}; "
            f"expected {len(rewards)} finite numbers"
        )
    advantages[valid] = values
    return advantages


def _by_function(group: RolloutGroup, weights: Sequence[float] | None) -> Tensor:
    """gdpo: normalises each reward function within the group, then sums them by weight [G]."""
    assert group.rewards is not None  # scored
    total = torch.zeros(len(group.rollouts), dtype=torch.float64)
    for f, weight in enumerate(weights or [1.0] * group.rewards.shape[1]):
        values = group.rewards[:, f]
        ok = ~values.isnan()
        r = values[ok]
        if len(r) > 1 and r.max() > r.min():
            total[ok] += weight * (r - r.mean()) / (r.std() + EPSILON)
    return total


def _normalised(raw: Sequence[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
    """(a − mean a) / (std a + 1e-4) over the step's completions that have a reward; all equal: exactly 0."""
    step = torch.cat([a[ok] for a, ok in zip(raw, valid, strict=True)]) if raw else torch.empty(0)
    if len(step) < 2 or step.max() == step.min():
        return [torch.zeros_like(a) for a in raw]
    scaled = [(a - step.mean()) / (step.std() + EPSILON) for a in raw]
    # The step's mean is 0 only up to rounding, so groups with no spread are set to exactly 0.
    return [
        torch.where(ok, s, 0.0) if a.any() else torch.zeros_like(a)
        for a, s, ok in zip(raw, scaled, valid, strict=True)
    ]


def _scaled(
    raw: Sequence[Tensor], groups: Sequence[RolloutGroup], valid: Sequence[Tensor], scale_rewards: str
) -> list[Tensor]:
    """d divided by the std of its group, or of the step's rewards, + 1e-4."""
    rewards = [_rewards(group)[ok] for group, ok in zip(groups, valid, strict=True)]
    if scale_rewards == "batch":
        rewards = [torch.cat(rewards)] * len(raw) if raw else []
    return [a / (r.std() + EPSILON) if len(r) > 1 else a for a, r in zip(raw, rewards, strict=True)]


def _with(group: RolloutGroup, advantages: Tensor, valid: Tensor) -> RolloutGroup:
    rollouts = tuple(
        rollout if ok else dataclasses.replace(rollout, trainable=torch.zeros_like(rollout.trainable))
        for rollout, ok in zip(group.rollouts, valid.tolist(), strict=True)
    )
    return dataclasses.replace(group, advantages=advantages, rollouts=rollouts)


def _lengths(group: RolloutGroup) -> Tensor:
    return torch.tensor([int(rollout.trainable.sum()) for rollout in group.rollouts], dtype=torch.float64)


def _rewards(group: RolloutGroup) -> Tensor:
    if group.reward is None:
        raise ValueError(f"{group.prompt.source}: the group has no rewards yet; score it first")
    return group.reward


def mask_truncated(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Groups whose truncated completions may not be trained on: overlong filtering (arXiv 2503.14476, section 3.4).

    Their rewards stay in the group's baseline; their tokens leave the loss and its denominators.
    """
    return [
        replace(
            group,
            rollouts=tuple(
                rollout
                if rollout.finish_reason == "stop"
                else replace(rollout, trainable=torch.zeros_like(rollout.trainable))
                for rollout in group.rollouts
            ),
        )
        for group in groups
    ]
