"""Passes over an update's samples: which samples, in which micro-batches, and their log-probs without a gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batch.collate import collate, split_by_sample
from ..batch.cuts import Cut, Sharing, cut_samples
from ..config.sampled import Sampled
from ..losses import Loss, Stats
from ..parallel import ALONE, World, reshard
from ..types import (
    Layout,
    MicroBatch,
    Sample,
    TokenScores,
    Update,
)
from .flops import Work
from .reference import Reference
from .router import Balance, RouterLoss


class NonFiniteError(ValueError):
    """A loss or gradient is NaN or infinite. The weights were not changed."""


@dataclasses.dataclass(frozen=True, eq=False)
class FirstPass:
    """What a first pass over a whole update fixes for the second. Example: `FirstPass(stats=None, balance=None)`"""

    stats: Stats | None = None  # the statistics, where the loss couples a group or the update
    balance: Balance | None = None  # what the router auxiliary loss needs


@dataclasses.dataclass(frozen=True, eq=False)
class Offender:
    """The micro-batch that gave a loss or gradient which is not finite. With the weights, it suffices for a replay."""

    samples: tuple[Sample, ...]
    whole: FirstPass
    what: str  # "loss" or "gradient"
    layout: Layout
    update: int = 1  # number of the update within its step, counted from 1


Dump = Callable[[Offender], Path]
# Called after each update with its number within the step, the update, this rank's log-probs (sample index → [T_i]), and the
# statistics of the whole update.
Observe = Callable[[int, Update, Mapping[int, Tensor], Stats | None], None]


@dataclasses.dataclass(frozen=True)
class Learning:
    """How to learn from a step: the options that `learn` needs, and hooks into the run around it."""

    num_iterations: int = 1
    micro_batch_tokens: int = 8192
    max_grad_norm: float = 1.0
    drop_dead_rows: bool = True
    seed: int = 0  # keys random selections
    packed: bool = False  # the layout is `packed` instead of `padded`
    share: Sharing = "never"  # whether prompts are shared
    router: RouterLoss | None = None  # the router auxiliary loss
    sampled: Sampled = "full"  # what the completions were drawn from
    skips_left: int = 0  # updates that may still be skipped because they were not finite
    world: World = ALONE
    pause: Callable[[], None] | None = None  # called between micro-batches on all ranks; may raise
    dump: Dump | None = None  # writes an offending micro-batch to disk
    observe: Observe | None = None
    work: Work | None = None  # counts the FLOPs of every forward and backward


def cut_of(samples: Iterable[Sample], how: Learning) -> Cut:
    """Cuts `samples` into the micro-batches of all ranks."""
    return cut_samples(
        samples, how.micro_batch_tokens, packed=how.packed, share=how.share, ranks=how.world.size
    )


def iter_micro_batches(cut: Cut, how: Learning, policy: Reference) -> Iterator[MicroBatch]:
    """Yields this rank's micro-batches, with a pause before each."""
    for samples in cut.parts[how.world.rank]:
        if how.pause is not None:
            how.pause()
        whole, compared = how.router is not None, how.sampled == "full"
        if how.work is not None:
            how.work.add(policy, samples, cut.layout, whole)
        yield collate(samples, cut.layout, policy.device, whole=whole, compared=compared)


def samples_to_train(update: Update, loss: Loss, how: Learning) -> tuple[Sample, ...]:
    """Returns the samples that can move the weights. Samples with A = 0 are dropped if all terms of the loss allow it."""
    if not (how.drop_dead_rows and loss.drops_dead_rows and how.router is None):
        return update.samples
    return tuple(sample for sample in update.samples if sample.advantages.any())


def samples_to_score(update: Update, loss: Loss, how: Learning) -> tuple[Sample, ...]:
    """Returns the samples to score: all of them where statistics cover the whole update."""
    return update.samples if loss.needs_stats else samples_to_train(update, loss, how)


@torch.no_grad()
def iter_scores(
    policy: Reference, samples: Iterable[Sample], how: Learning, **asked: Any
) -> Iterator[tuple[MicroBatch, TokenScores]]:
    """Yields this rank's micro-batches of `samples` with their scores, computed without gradient.

    Args:
        policy: the policy, or the reference.
        samples: the samples of all ranks.
        how: the settings of learning.
        **asked: what else to compute: `with_entropy`, or `router` to count experts.

    Yields:
        Each micro-batch of this rank, with its scores.
    """
    for micro in iter_micro_batches(cut_of(samples, how), how, policy):
        yield micro, policy(micro, **asked)[0]
    reshard(policy)  # without a backward, nothing else frees the gathered weights


@torch.no_grad()
def score(policy: Reference, samples: Iterable[Sample], how: Learning) -> dict[int, Tensor]:
    """Scores the samples on all ranks, without gradient: sample index → [T_i] log-probs of the trainable tokens."""
    found: dict[int, Tensor] = {}
    for micro, scores in iter_scores(policy, samples, how):
        found |= split_by_sample(micro, scores.logps)
    return how.world.gather_by_index(found)


def fill_logps(update: Update, name: str, logps: Mapping[int, Tensor]) -> Update:
    """Returns the update with the field `name` of its samples (old_logps or ref_logps) filled in from `logps`."""
    samples = (
        dataclasses.replace(r, **{name: logps[r.index]}) if r.index in logps else r for r in update.samples
    )
    return dataclasses.replace(update, samples=tuple(samples))
