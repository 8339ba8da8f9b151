"""Scores groups of rollouts: groups → the same groups with rewards, and metrics of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..types import Metric, Metrics, Rollout, RolloutGroup
from .functions import RewardError, Score, Stuck, call_all
from .registry import Reward
from .reporting import Report


def score(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Reward],
    timeout: float = 0.0,
    stuck: Stuck | None = None,
    report: Report | None = None,
    by_group: bool = False,
) -> list[RolloutGroup]:
    """Adds `rewards` [G, F] and their weighted sum `reward` [G] to the groups, both float64, and what functions log of each.

    Each function is called once, for all B completions that its route leads to. Async functions run together, after the
    others. NaN in `rewards` means that the function does not apply: it returned None, or has another route. NaN in `reward`
    means that no function applies. No function sees a dropped episode, and its rewards are NaN.

    Args:
        groups: groups without rewards.
        rewards: F reward functions.
        timeout: seconds that a function may take; 0: no limit.
        stuck: called where a function catches its time limit again and again.
        report: collects what the functions log (None: it is dropped).
        by_group: calls each function once for each group, instead of once for all; async functions for all groups at once.

    Returns:
        The groups with rewards.

    Raises:
        RewardError: a function failed. The message names it and, where known, file:line and the dataset's row.
    """
    if not groups:
        return []
    if not rewards:  # a teacher alone
        sizes = [len(group.rollouts) for group in groups]
        none = [torch.full((n,), math.nan, dtype=torch.float64) for n in sizes]
        return [replace(g, rewards=r[:, None][:, :0], reward=r) for g, r in zip(groups, none, strict=True)]
    report = report or Report()
    batches = [[group] for group in groups] if by_group else [groups]
    kept = [[(g.prompt, r) for g in batch for r in g.rollouts if not r.is_dropped] for batch in batches]
    parts = [
        (batch, pairs, Report(report.state, report.is_taken))
        for batch, pairs in zip(batches, kept, strict=True)
    ]
    called = [(pairs, own) for _, pairs, own in parts if pairs]
    tables = iter(
        call_all(rewards, [pairs for pairs, _ in called], timeout, stuck, [own for _, own in called])
    )
    scored: list[RolloutGroup] = []
    for batch, pairs, own in parts:
        scored += _with_rewards(batch, rewards, next(tables) if pairs else [], own)
        try:
            report.add(own)
        except ValueError as error:
            raise RewardError(f"reward functions of several groups {error}") from error
    return scored


def _with_rewards(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Reward],
    scores: Sequence[Sequence[Score]],
    report: Report,
) -> list[RolloutGroup]:
    """Adds rewards to the groups that were scored together.

    Args:
        groups: the groups.
        rewards: F reward functions.
        scores: [F][B] scores of the completions that aren't dropped; empty where all of them are.
        report: what the functions have logged of these groups.

    Returns:
        The groups with rewards.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    is_kept = torch.tensor([not rollout.is_dropped for rollout in rollouts])  # [B]
    table = torch.full((len(is_kept), len(rewards)), math.nan, dtype=torch.float64)  # [B, F]
    if scores:
        numbers = [[float(s.nansum()) if isinstance(s, Tensor) else s for s in own] for own in scores]
        table[is_kept] = torch.tensor(numbers, dtype=torch.float64).T
    sizes = [len(group.rollouts) for group in groups]
    total = _weighted_sum(table, rewards)  # [B]
    extras = _extras_of_groups(report.extras, is_kept, sizes)
    scored = [
        replace(group, rewards=each, reward=summed, extras=logged)
        for group, each, summed, logged in zip(
            groups, table.split(sizes), total.split(sizes), extras, strict=True
        )
    ]
    if not any(isinstance(score, Tensor) for own in scores for score in own):
        return scored
    placed = iter(_of_tokens(rollouts, is_kept, rewards, scores))
    return [replace(g, token_rewards=tuple(next(placed) for _ in g.rollouts)) for g in scored]


def _of_tokens(
    rollouts: Sequence[Rollout], is_kept: Tensor, rewards: Sequence[Reward], scores: Sequence[Sequence[Score]]
) -> list[Tensor]:
    """Returns the weighted sum of the rewards that functions gave to tokens, [T] for each of the B completions; NaN elsewhere."""
    found = [torch.full((len(r.completion_ids),), torch.nan, dtype=torch.float64) for r in rollouts]
    kept = torch.nonzero(is_kept).flatten().tolist()
    for reward, own in zip(rewards, scores, strict=True):
        for b, score in zip(kept, own, strict=True):
            if isinstance(score, Tensor):
                ends = found[b].isnan() & score.isnan()
                added = found[b].nan_to_num() + reward.weight * score.nan_to_num()
                found[b] = torch.where(ends, torch.nan, added)
    return found


def _extras_of_groups(
    extras: Mapping[str, Sequence[Any]], is_kept: Tensor, sizes: Sequence[int]
) -> list[dict[str, list[Any]]]:
    """Returns each group's part of the logged columns. A dropped episode has None."""
    values = {column: iter(logged) for column, logged in extras.items()}
    kept = iter(is_kept.tolist())
    found: list[dict[str, list[Any]]] = []
    for size in sizes:
        rows = [next(kept) for _ in range(size)]
        found.append({c: [next(logged) if row else None for row in rows] for c, logged in values.items()})
    return found


def reward_metrics(groups: Sequence[RolloutGroup], rewards: Sequence[Reward]) -> Metrics:
    """Computes metrics of scored groups, over the completions that have a reward.

    * `reward`: their mean; `reward_std`: the mean over groups of the group's unbiased standard deviation
      (groups with at least two rewards);
    * `frac_reward_zero_std`: the share of groups (with a reward) whose rewards are all equal;
    * `reward/unscored`: the share of all completions (without dropped episodes) that have none, so that nothing is learned
      from them;
    * `rewards/<name>/mean`, `rewards/<name>/std`: over the completions to which that function applies;
    * `reward/<dataset>/mean`: where there are several datasets, the mean over the completions of each.
    """
    if not rewards:  # a teacher alone
        return {}
    totals = [_present(group.reward) for group in groups]
    spread = [_std(values) for values in totals if len(values) > 1]
    equal = [float(values.min() == values.max()) for values in totals if len(values) > 0]
    metrics = {
        "reward": Metric.mean(_joined(totals)),
        "reward_std": Metric.mean(torch.tensor(spread, dtype=torch.float64)),
        "frac_reward_zero_std": Metric.mean(torch.tensor(equal, dtype=torch.float64)),
        "reward/unscored": Metric.mean(_joined([_unscored(group) for group in groups])),
    }
    for column, reward in enumerate(rewards):
        values = _joined([_present(g.rewards[:, column]) for g in groups if g.rewards is not None])
        metrics[f"rewards/{reward.name}/mean"] = Metric.mean(values)
        metrics[f"rewards/{reward.name}/std"] = Metric.derived("std", values)
    for name in sorted({group.prompt.dataset for group in groups} - {""}):
        own = [values for group, values in zip(groups, totals, strict=True) if group.prompt.dataset == name]
        metrics[f"reward/{name}/mean"] = Metric.mean(_joined(own))
    return metrics


# --------------------------------------------------------------------------- arithmetic


def _weighted_sum(table: Tensor, rewards: Sequence[Reward]) -> Tensor:
    """[B, F] → [B], NaN where no function applies.

    Adds column by column. A matrix product might round two equal rows of it differently, and a group of equal rewards must
    stay exactly equal, because then it has no signal.
    """
    total = torch.zeros(len(table), dtype=torch.float64)
    for column, reward in zip(table.T, rewards, strict=True):
        total = total + reward.weight * column.nan_to_num(0.0)
    return total.masked_fill(table.isnan().all(dim=1), math.nan)


def _present(values: Tensor | None) -> Tensor:
    """Returns the entries that are not NaN; none if there are no rewards yet."""
    return torch.zeros(0, dtype=torch.float64) if values is None else values[~values.isnan()]


def _unscored(group: RolloutGroup) -> Tensor:
    """Returns 1 for each completion without a reward, else 0; nothing for dropped episodes."""
    if group.reward is None:
        return torch.zeros(0, dtype=torch.float64)
    is_kept = torch.tensor([not rollout.is_dropped for rollout in group.rollouts], dtype=torch.bool)
    return group.reward.isnan()[is_kept].double()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def _std(values: Tensor) -> float:
    """Returns the unbiased standard deviation. It is exactly 0 for equal values, whose computed mean may be rounded."""
    return 0.0 if values.min() == values.max() else float(values.std())
