"""Drops tokens that a correction's mask rejects, before the counts of the update are taken (`--rejected_tokens drop`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..batch.plan import weigh
from ..losses import Loss
from ..losses.correction import Correction, diagnostics
from ..losses.ratio import clamp_log_ratio
from ..types import (
    Metrics,
    Sample,
    Update,
    join_metrics,
)


def sampler_mismatch(samples: Iterable[Sample], old: Mapping[int, Tensor], loss: Loss) -> Metrics:
    """Measures how far sampler and trainer are apart, over all tokens, before rejected ones are dropped."""
    found: Metrics = {}
    assert loss.correction is not None
    for sample in samples:
        found = join_metrics(found, diagnostics(*log_weights(sample, old, loss.correction), loss.correction))
    return found


def drop_rejected(update: Update, old: Mapping[int, Tensor], loss: Loss, ranks: int = 1) -> Update:
    """Returns the update without the tokens that the correction's mask rejects, with new weights.

    Args:
        update: the update.
        old: sample index → [T_i], the trainer's log-probs at the start of the step.
        loss: the loss, with a correction.
        ranks: ranks among which the samples are dealt.

    Returns:
        The update, with new weights.
    """
    assert loss.correction is not None
    samples = []
    for sample in update.samples:
        kept = ~loss.correction.rejects(log_weights(sample, old, loss.correction)[1])
        trainable = torch.zeros_like(sample.trainable)
        trainable[torch.nonzero(sample.trainable).flatten()[kept]] = True
        samples.append(
            dataclasses.replace(
                sample, trainable=trainable, sampler_logps=sample.sampler_logps[kept], length=int(kept.sum())
            )
        )
    return weigh(samples, loss, ranks)


def log_weights(sample: Sample, old: Mapping[int, Tensor], correction: Correction) -> tuple[Tensor, Tensor]:
    """Returns log(old / sampler) of a sample's tokens [T_i], and its value at the correction's level [T_i]."""
    of_token = clamp_log_ratio(old[sample.index] - sample.sampler_logps)
    return of_token, correction.of_sequence(of_token).expand_as(of_token)
