"""Turns rewards into advantages, in float64, over the whole step. `estimators.py` has the estimators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.imports import raised_in
from ..common.text import one_line
from ..types import Rollout, RolloutGroup
from .estimators import (
    EPSILON,
    ESTIMATORS,
    SCALINGS,
    Scored,
    Settings,
    has_spread,
    within_group,
)
from .turns import turn_advantages

Estimator = Callable[..., Tensor | Sequence[float] | Sequence[Tensor]]
"""An advantage estimator of one's own: `f(rewards)` or `f(rewards, rollouts)`.

`rewards` [G] float64 are those of a group's completions that have a reward, and `rollouts` these completions. It returns
their advantages: G finite numbers, or for each completion T finite numbers, one for each of its T tokens.

Example:
    >>> def centred(rewards):
    ...     return rewards - rewards.mean()
    >>> def later_counts_more(rewards, rollouts):
    ...     return [r * torch.linspace(0, 1, len(c.completion_ids)) for r, c in zip(centred(rewards), rollouts)]
"""


def add_advantages(
    groups: Sequence[RolloutGroup],
    estimator: str | Estimator = "group",
    scale_rewards: str = "group",
    weights: Sequence[float] | None = None,
    epsilon: float = EPSILON,
    turn_discount: float | None = None,
) -> list[RolloutGroup]:
    """Adds `advantages` [G] float64 to groups. A completion without a reward gets 0 and may not be trained on.

    The estimators, with R the rewards of a group and d = R − their mean:

    * `group`: d, divided as `scale_rewards` says (`group`: the group's unbiased std + ε; `batch`: the std of the
      step's rewards + ε; `none`);
    * `rloo`: R − mean of the others of its group (arXiv 2402.14740);
    * `reinforce_plus_plus`: (d − mean d) / (std d + ε) over the step (2501.03262, its baseline variant);
    * `reinforce_plus_plus_global`: (R − mean R) / (std R + ε) over the step, without a group (2501.03262);
    * `opo`: R − (Σ T·R) / (Σ T), sums over the group, T the completions' trainable tokens (2505.23585);
    * `gdpo`: each reward function normalised within its group, their weighted sum, normalised over the step
      (2601.05242). `weights` [F] are those of the reward functions;
    * `maxrl`: d / the group's mean reward; rewards must be at least 0 (2602.02710);
    * `remax`: R − the reward of the prompt's greedy completion (2310.10505);
    * `gpg`: d · B / (B − M), with M of the step's B completions in groups without spread (2504.02546);
    * `loo_std`: R − mean of the others, divided by the std of the others + ε, unless that std is 0 or there is one other
      (as NeMo-RL does);
    * `pass_k`: the best completion gets (R − the second-best R) / (std of the group + ε), all others 0 (2503.19595).

    Without any reward function (a run that learns from a teacher alone), all advantages are 0. A group whose rewards are all
    equal has advantages of exactly 0, where its completions are compared with each other.

    Args:
        groups: the scored groups of a whole step.
        estimator: one of ESTIMATORS, or a function: see `Estimator`.
        scale_rewards: one of SCALINGS; for `group` alone.
        weights: [F], one weight for each reward function; for `gdpo` alone.
        epsilon: ε, added to a std before dividing by it.
        turn_discount: γ of turn returns (see `turns.py`), for `group` alone; None: one advantage for a completion.

    Returns:
        The same groups, in the same order. Where the function gave an advantage for each token, `token_advantages` has
        them, and `advantages` their mean over a completion's trainable tokens.

    Raises:
        ValueError: an unknown name, a group without rewards, rewards that the estimator can't use, or a function that
            returns something else than advantages.
    """
    if groups and all(group.rewards is not None and group.rewards.shape[1] == 0 for group in groups):
        return [_without_rewards(group) for group in groups]
    valid = [_has_reward(group, estimator) for group in groups]
    if not isinstance(estimator, str):
        own = [_by_own(group, ok, estimator) for group, ok in zip(groups, valid, strict=True)]
        return [_with(group, *a, ok) for group, a, ok in zip(groups, own, valid, strict=True)]
    if estimator not in ESTIMATORS or scale_rewards not in SCALINGS:
        raise ValueError(
            f"advantage_estimator {estimator}, scale_rewards {scale_rewards}: there are {', '.join(ESTIMATORS)} for the one, "
            f"and {', '.join(SCALINGS)} for the other"
        )
    if turn_discount is not None and (estimator != "group" or scale_rewards == "batch"):
        raise ValueError(
            f"turn_discount {turn_discount:g}: compares turns as the estimator group does, and needs scale_rewards group or none"
        )
    row, how = ESTIMATORS[estimator], Settings(scale_rewards, weights, epsilon)
    if turn_discount is not None:
        return [_with_turns(group, ok, turn_discount, how) for group, ok in zip(groups, valid, strict=True)]
    scored = [_scored(group, ok) for group, ok in zip(groups, valid, strict=True)]
    found = [within_group(row, group, how) for group in scored]
    if row.over is not None:
        found = row.over(found, scored, how)
    return [_with(group, _spread(a, ok), None, ok) for group, a, ok in zip(groups, found, valid, strict=True)]


def has_signal(
    group: RolloutGroup,
    estimator: str | Estimator = "group",
    weights: Sequence[float] | None = None,
    turn_discount: float | None = None,
) -> bool:
    """Tells whether a scored group teaches anything under an estimator: whether it gives any advantage that isn't 0.

    `gdpo` learns from each reward function by itself, so it needs one function with a weight whose rewards differ. An
    estimator that compares over the step alone has a signal in every group with a reward. All others see the weighted
    sum within the group.

    Args:
        group: a scored group.
        estimator: one of ESTIMATORS, or a function: see `Estimator`.
        weights: [F], one weight for each reward function; for `gdpo` alone.
        turn_discount: see `add_advantages`.

    Returns:
        Whether dynamic sampling keeps the group.
    """
    valid = _has_reward(group, estimator)
    if not isinstance(estimator, str):
        rounding = 1e-12 * max(1.0, float(_rewards(group).nan_to_num().abs().max()))
        of_completions, of_tokens = _by_own(group, valid, estimator)
        if of_tokens is not None:
            return _reaches_tokens(of_tokens, group.rollouts, rounding)
        return bool((of_completions.abs() > rounding).any())
    row = ESTIMATORS[estimator]
    if turn_discount is not None:
        made = _with_turns(group, valid, turn_discount, Settings("none"))
        return _reaches_tokens(made.token_advantages or (), made.rollouts)
    if row.of_step:
        return bool(valid.any())
    scored, how = _scored(group, valid), Settings(weights=weights)
    return has_spread(row, scored, how) if row.of_functions else bool(within_group(row, scored, how).any())


def _with_turns(group: RolloutGroup, valid: Tensor, discount: float, how: Settings) -> RolloutGroup:
    """Returns the group with an advantage for each token; see `turn_advantages`."""
    of_tokens = turn_advantages(group, valid, discount, how)
    return _with(group, _means(of_tokens, group.rollouts), of_tokens, valid)


def _reaches_tokens(of_tokens: Sequence[Tensor], rollouts: Sequence[Rollout], rounding: float = 0.0) -> bool:
    """Tells whether any trainable token has an advantage whose size is above `rounding`."""
    pairs = zip(of_tokens, rollouts, strict=True)
    return any(bool((a[rollout.trainable].abs() > rounding).any()) for a, rollout in pairs)


def _means(of_tokens: Sequence[Tensor], rollouts: Sequence[Rollout]) -> Tensor:
    """Returns the mean advantage of each completion's trainable tokens [G]; 0 without any."""
    pairs = zip(of_tokens, rollouts, strict=True)
    return torch.stack([a[rollout.trainable].mean().nan_to_num() for a, rollout in pairs])


def _has_reward(group: RolloutGroup, estimator: str | Estimator) -> Tensor:
    """Returns [G] bool: the completions that get an advantage. None does where the greedy one to compare with has no reward."""
    valid = ~_rewards(group).isnan()
    if isinstance(estimator, str) and estimator in ESTIMATORS and ESTIMATORS[estimator].needs_greedy:
        if group.greedy_reward is None:
            raise ValueError(
                f"advantage_estimator {estimator}: the group of {group.prompt.source} has no greedy_reward"
            )
        valid &= ~group.greedy_reward.isnan()
    return valid


def _scored(group: RolloutGroup, valid: Tensor) -> Scored:
    rewards, lengths = _rewards(group), [int(rollout.trainable.sum()) for rollout in group.rollouts]
    return Scored(
        rewards=rewards[valid],
        by_function=(rewards[:, None] if group.rewards is None else group.rewards)[valid],
        lengths=torch.tensor(lengths, dtype=torch.float64)[valid],
        greedy=None if group.greedy_reward is None else float(group.greedy_reward),
        source=group.prompt.source,
    )


def _by_own(
    group: RolloutGroup, valid: Tensor, estimator: Estimator
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The advantages that a user's function gives a group: [G], and G × [T] where it gives one for each token.

    They are 0 where there is no reward. Raises ValueError naming the function.
    """
    rewards = _rewards(group)[valid]
    if len(rewards) == 0:
        return torch.zeros_like(_rewards(group)), None
    rollouts = [rollout for rollout, ok in zip(group.rollouts, valid.tolist(), strict=True) if ok]
    name = getattr(estimator, "__name__", type(estimator).__name__)
    try:
        wants_rollouts = len(inspect.signature(estimator).parameters) > 1
        found = estimator(rewards, rollouts) if wants_rollouts else estimator(rewards)
        values = [torch.as_tensor(one, dtype=torch.float64) for one in (found if _is_listed(found) else [])]
    except Exception as error:
        raise ValueError(
            f"--advantage_estimator {name}: raised {type(error).__name__}: {one_line(error)} ({raised_in(error, estimator)}) "
            f"for the group of {group.prompt.source}"
        ) from error
    is_by_token = any(value.ndim for value in values)
    _check_own(name, found, values, rollouts, is_by_token, group.prompt.source)
    if not is_by_token:
        return _spread(torch.stack(values), valid), None
    given = iter(values)
    of_tokens = tuple(
        next(given) if ok else torch.zeros(len(rollout.completion_ids), dtype=torch.float64)
        for rollout, ok in zip(group.rollouts, valid.tolist(), strict=True)
    )
    return _means(of_tokens, group.rollouts), of_tokens


def _is_listed(found: Any) -> bool:
    return isinstance(found, Sequence) or (isinstance(found, Tensor | np.ndarray) and found.ndim > 0)


def _check_own(
    name: str, found: Any, values: list[Tensor], rollouts: list[Rollout], is_by_token: bool, source: str
) -> None:
    """Raises ValueError unless a user's function returned an advantage for each completion, or for each of its tokens.

    Args:
        name: the function's.
        found: what it returned.
        values: the same as tensors.
        rollouts: the completions that it was given.
        is_by_token: whether any of the values is a list.
        source: the prompt's row.
    """
    expected = f"{len(rollouts)} finite numbers"
    want = [(len(rollout.completion_ids),) if is_by_token else () for rollout in rollouts]
    if is_by_token:
        lengths = ", ".join(str(len(rollout.completion_ids)) for rollout in rollouts)
        expected += f", or {len(rollouts)} lists with a finite number for each token ({lengths})"
    if [tuple(value.shape) for value in values] != want or not all(v.isfinite().all() for v in values):
        raise ValueError(
            f"--advantage_estimator {name}: returned {one_line(found, 80)} for the group of {source}; expected {expected}"
        )


def _spread(values: Tensor, valid: Tensor) -> Tensor:
    """Returns [G]: the values [n] of the completions with a reward, and 0 elsewhere."""
    return torch.zeros(len(valid), dtype=torch.float64).masked_scatter(valid, values)


def _without_rewards(group: RolloutGroup) -> RolloutGroup:
    """Returns the group with advantages of 0, where a run has no reward functions: its teacher reaches every completion."""
    kept = torch.tensor([not rollout.is_dropped for rollout in group.rollouts])
    return _with(group, torch.zeros(len(kept), dtype=torch.float64), None, kept)


def _with(
    group: RolloutGroup, advantages: Tensor, of_tokens: tuple[Tensor, ...] | None, valid: Tensor
) -> RolloutGroup:
    rollouts = tuple(
        rollout if ok else replace(rollout, trainable=torch.zeros_like(rollout.trainable))
        for rollout, ok in zip(group.rollouts, valid.tolist(), strict=True)
    )
    return replace(group, advantages=advantages, token_advantages=of_tokens, rollouts=rollouts)


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
