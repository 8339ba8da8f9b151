"""The first pass over an update: computes the statistics that couple its samples, and fixes them for the second pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch.collate import loss_batch, split_by_sample
from ..losses import Loss, Stats, UpdateStats
from ..parallel import World
from ..types import ExpertUse, Update
from .policy import Policy
from .router import Balance, RouterLoss
from .scoring import FirstPass, Learning, iter_scores


@torch.no_grad()
def first_pass(
    policy: Policy, update: Update, loss: Loss, how: Learning
) -> tuple[FirstPass, dict[int, Tensor]]:
    """Computes the statistics that couple an update's samples, in a forward over all of them. Skips it if no term needs any.

    Samples with A = 0 are included: the statistics cover them, and the router auxiliary loss trains on them.

    Args:
        policy: the model that is trained.
        update: the update.
        loss: the loss.
        how: the settings of learning.

    Returns:
        What is fixed, and this rank's log-probs: sample index → [T_i].
    """
    parts: list[UpdateStats] = []
    used: list[ExpertUse] = []
    logps: dict[int, Tensor] = {}
    if not (update.samples and (loss.needs_stats or how.router)):
        return FirstPass(), logps
    asked = {"with_entropy": loss.needs_entropies, "router": how.router}
    for micro, scores in iter_scores(policy, update.samples, how, **asked):
        logps |= split_by_sample(micro, scores.logps)
        if loss.needs_stats:
            parts.append(UpdateStats.of(loss, loss_batch(micro, scores)))
        if scores.experts is not None:
            used.append(scores.experts)
    stats = gather_stats(parts, policy, loss, how) if loss.needs_stats else None
    return FirstPass(stats, how.router and gather_balance(used, policy, how.router, how.world)), logps


def gather_stats(parts: Sequence[UpdateStats], policy: Policy, loss: Loss, how: Learning) -> Stats:
    """Joins the statistics of all slices and ranks, and finishes them. A collective.

    Args:
        parts: this rank's slices.
        policy: the model, for its device and version.
        loss: the loss.
        how: the settings of learning.

    Returns:
        The update's statistics, the same on every rank.
    """
    mine = UpdateStats.join(parts).tokens
    ranks = [
        UpdateStats(
            dataclasses.replace(mine, **{name: value.to(policy.device) for name, value in part.items()})
        )
        for part in how.world.gather_tensors(mine.tensors())
    ]
    return UpdateStats.join(ranks).finish(loss, how.seed, policy.version)


def gather_balance(used: Sequence[ExpertUse], policy: Policy, router: RouterLoss, world: World) -> Balance:
    """Adds up how often each expert was chosen, over all slices and ranks. A collective.

    Args:
        used: this rank's slices.
        policy: the model, for its device.
        router: the router loss.
        world: the ranks.

    Returns:
        What the second pass needs, the same on every rank.
    """
    mine = functools.reduce(ExpertUse.__add__, used)
    ranks = [ExpertUse(**part) for part in world.gather_tensors(vars(mine))]
    total = functools.reduce(ExpertUse.__add__, ranks)
    return Balance.of(router, ExpertUse(total.chosen.to(policy.device), total.pairs.to(policy.device)))
