"""Plans a step's updates and fixes every weight. All denominators are decided in this file, before any cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses import Counts, Loss, sequence_weights
from ..types import RolloutGroup, Sample, Update
from .cuts import deal


def plan_step(
    groups: Sequence[RolloutGroup], loss: Loss, updates_per_step: int = 1, ranks: int = 1
) -> list[Update]:
    """Splits a step's groups into updates of whole groups, each with its final weights.

    Args:
        groups: the scored groups of the step, with advantages.
        loss: names the reduction.
        updates_per_step: the number of updates.
        ranks: the number of ranks, which `rank_token_mean` depends on.

    Returns:
        The updates in order.
    """
    size = -(-len(groups) // updates_per_step)
    return [plan_update(groups[start : start + size], loss, ranks) for start in range(0, len(groups), size)]


def plan_update(groups: Sequence[RolloutGroup], loss: Loss, ranks: int = 1) -> Update:
    """Makes one update: a sample per rollout, with weights computed before anything is cut."""
    samples = [
        Sample(
            index=index,
            group=number,
            prompt_ids=rollout.prompt_ids(group.prompt),
            completion_ids=rollout.completion_ids,
            trainable=rollout.trainable,
            advantage=_advantage(group, g, loss),
            weight=0.0,
            length=int(rollout.trainable.sum()),
            sampler_logps=rollout.logps[rollout.trainable],
            teacher_logps=None if rollout.teacher_logps is None else rollout.teacher_logps[rollout.trainable],
        )
        for index, (number, g, group, rollout) in enumerate(
            (number, g, group, rollout)
            for number, group in enumerate(groups)
            for g, rollout in enumerate(group.rollouts)
        )
    ]
    return weigh(samples, loss, ranks)


def unweighted(groups: Sequence[RolloutGroup]) -> list[Sample]:
    """Returns the samples of a step's trainable completions, to score them: numbered over all completions of the groups."""
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    return [
        Sample(
            index=index,
            group=0,
            prompt_ids=rollout.prompt_ids(group.prompt),
            completion_ids=rollout.completion_ids,
            trainable=rollout.trainable,
            advantage=0.0,
            weight=0.0,
            length=int(rollout.trainable.sum()),
            sampler_logps=rollout.logps[rollout.trainable],
        )
        for index, (group, rollout) in enumerate(rollouts)
        if rollout.trainable.any()
    ]


def weigh(samples: Sequence[Sample], loss: Loss, ranks: int = 1) -> Update:
    """Computes w_i of every sample from the counts of all of them.

    The samples are dealt to the ranks first, because one reduction (bnpo's) divides by the tokens of a rank. A sample without
    trainable tokens has no weight and is not counted, so it is left out.

    Args:
        samples: the samples of one update.
        loss: names the reduction.
        ranks: the number of ranks.

    Returns:
        The update, in the order of the samples' indices.
    """
    shares = deal(samples, ranks)
    lengths = [torch.tensor([sample.length for sample in share], dtype=torch.int64) for share in shares]
    groups = [torch.tensor([sample.group for sample in share], dtype=torch.int64) for share in shares]
    counts = Counts.across_ranks([Counts.of(*of_rank) for of_rank in zip(lengths, groups, strict=True)])
    weighed = [
        dataclasses.replace(sample, weight=float(w), teacher_weight=1 / counts[0].tokens)
        for share, own, n, g in zip(shares, counts, lengths, groups, strict=True)
        for sample, w in zip(share, sequence_weights(loss, n, own, g), strict=True)
        if sample.length
    ]
    return Update(tuple(sorted(weighed, key=lambda sample: sample.index)), counts[0].tokens)


def _advantage(group: RolloutGroup, g: int, loss: Loss) -> float | Tensor:
    """Returns the advantage of completion g, or those of its trainable tokens [T_i]."""
    if group.advantages is None:
        raise ValueError(f"{group.prompt.source}: the group has no advantages; call add_advantages first")
    if group.token_advantages is not None:
        found = group.token_advantages[g][group.rollouts[g].trainable]
        if loss.one_advantage and len(found.unique()) > 1:
            raise ValueError(
                f"{group.prompt.source}: its tokens have advantages of their own, and {loss.name} has one value for a "
                "sequence; use loss_type gspo_token, or a loss of tokens such as dapo"
            )
        if loss.opsm_threshold is not None and len(found.unique()) > 1:
            raise ValueError(
                f"opsm_threshold {loss.opsm_threshold:g}: drops sequences by the sign of their advantage, and the tokens of "
                f"{group.prompt.source} have advantages of their own; leave it out"
            )
        return found
    return float(group.advantages[g])
