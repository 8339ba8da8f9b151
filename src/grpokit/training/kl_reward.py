"""The KL penalty in the reward (--kl_in_reward): R' = R − β·Σ_t (old − ref), before advantages and dynamic sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..batch.plan import unweighted
from ..policy.learn import score
from ..policy.policy import Policy
from ..policy.reference import Reference
from ..policy.scoring import Learning
from ..types import Metric, Metrics, RolloutGroup


def subtract_kl(
    groups: Sequence[RolloutGroup], policy: Policy, reference: Reference, how: Learning, beta: float
) -> list[RolloutGroup]:
    """Subtracts β times each completion's KL from its reward. A collective: every rank has all groups.

    The sum is over the trainable tokens, with the policy's own log-probs, whichever engine has sampled. A completion
    without a trainable token, such as a dropped episode, has a KL of 0.

    Args:
        groups: scored groups of all ranks.
        policy: the policy, with the weights at the step's start.
        reference: the reference model.
        how: the settings of learning, such as the size of micro-batches.
        beta: the coefficient.

    Returns:
        The groups, with `kl` set and β·kl subtracted from `reward`.
    """
    samples = unweighted(groups)
    old, ref = (score(model, samples, how) for model in (policy, reference))
    kl = torch.zeros(sum(len(group.rollouts) for group in groups), dtype=torch.float64)  # [B]
    for index, logps in old.items():
        kl[index] = (logps.double() - ref[index].double()).sum().cpu()
    parts = kl.split([len(group.rollouts) for group in groups])
    return [
        replace(group, kl=part, reward=None if group.reward is None else group.reward - beta * part)
        for group, part in zip(groups, parts, strict=True)
    ]


def kl_metrics(groups: Sequence[RolloutGroup], beta: float) -> Metrics:
    """Returns `kl`, the mean over tokens, and `reward/kl`, the KL's part of the mean reward; {} if no KL was subtracted."""
    if not groups or groups[0].kl is None:
        return {}
    kl = torch.cat([group.kl for group in groups if group.kl is not None])
    tokens = sum(int(rollout.trainable.sum()) for group in groups for rollout in group.rollouts)
    rewarded = torch.cat([~group.reward.isnan() for group in groups if group.reward is not None])
    return {"kl": Metric.share(float(kl.sum()), tokens), "reward/kl": Metric.mean(-beta * kl[rewarded])}
