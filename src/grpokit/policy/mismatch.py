"""How far the sampler and the trainer are apart, and the tokens that are dropped for it (`--rejected_tokens drop`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..batch.plan import weigh
from ..losses import Loss
from ..losses.correction import Correction, diagnostics, of_sequences
from ..losses.ratio import clamp_log_ratio
from ..types import Metric, Metrics, MicroBatch, Sample, Update, join_metrics


def sampler_mismatch(samples: Iterable[Sample], old: Mapping[int, Tensor], loss: Loss) -> Metrics:
    """Measures how far sampler and trainer are apart, over all tokens, before rejected ones are dropped."""
    found: Metrics = {}
    assert loss.correction is not None
    for sample in samples:
        of_token, value = log_weights(sample, old, loss.correction)
        kept = None if loss.correction.keep is None else loss.correction.keeps(of_token).expand_as(of_token)
        found = join_metrics(found, diagnostics(of_token, value, loss.correction, kept))
        whole = of_sequences(
            old[sample.index].double(), sample.sampler_logps.double(), torch.tensor([sample.length])
        )
        found = join_metrics(found, {name: Metric.mean(values) for name, values in whole.items()})
    return found


def micro_mismatch(micro: MicroBatch, logps: Tensor, loss: Loss, sampled: str) -> Metrics:
    """Measures how far sampler and trainer are apart, beside what the loss reports.

    Where the sampler took a part of the distribution (top-p and the like), that is `sampler/kept_mass`, the mean mass of that
    part; else the diagnostics of `of_sequences`.

    Args:
        micro: the micro-batch.
        logps: [N] the policy's log-probs; they are the old ones where `micro.old_logps` is None.
        loss: the loss. Where it drops samples whose advantages are all 0, these don't count here either.
        sampled: see `Learning.sampled`.

    Returns:
        Additive metrics by name.
    """
    old = (logps if micro.old_logps is None else micro.old_logps).detach().double()
    if sampled == "part":  # the micro-batch has no sampler's log-probs, which are not to be compared
        sampler = torch.cat([old.new_zeros(0), *(s.sampler_logps.to(old) for s in micro.samples)])  # [N] μ
        return {"sampler/kept_mass": Metric.mean(clamp_log_ratio(old - sampler).exp())}
    if micro.sampler_logps is None:
        return {}
    lengths = torch.tensor([sample.length for sample in micro.samples], dtype=torch.int64, device=old.device)
    live = torch.tensor(
        [bool(sample.advantages.any()) or not loss.drops_dead_rows for sample in micro.samples],
        dtype=torch.bool,
        device=old.device,
    )
    found = of_sequences(old, micro.sampler_logps.double(), lengths)
    return {name: Metric.mean(values[live]) for name, values in found.items()}


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
        of_token, value = log_weights(sample, old, loss.correction)
        kept = ~loss.correction.rejects(value)
        if loss.correction.keep is not None:
            kept = kept & loss.correction.keeps(of_token)
        samples.append(sample.keeping(kept))
    return weigh(samples, loss, ranks)


def log_weights(sample: Sample, old: Mapping[int, Tensor], correction: Correction) -> tuple[Tensor, Tensor]:
    """Returns log(old / sampler) of a sample's tokens [T_i], and its value at the correction's level [T_i]."""
    of_token = clamp_log_ratio(old[sample.index] - sample.sampler_logps)
    return of_token, correction.of_sequence(of_token).expand_as(of_token)
