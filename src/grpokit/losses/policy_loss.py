"""The composition: a loss and a batch of tokens → this slice's additive share of the update's loss, and metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from grpokit.types import LossOutput, Metric, Metrics

from .batch import LossBatch
from .family import Loss
from .kl import k3
from .ratio import MAX_LOG_RATIO, RATIO_LEVELS, clamp_log_ratio


def policy_loss(loss: Loss, batch: LossBatch) -> LossOutput:
    """Σ w·(ℓ + β·k3) over the batch's tokens [N]: a share, to be summed over slices and ranks, never averaged.

    Computed in float32 or the log-probs' wider type. An empty batch gives a zero that is connected to `logps`.
    Raises ValueError where the loss has a KL term and the batch no `ref_logps`.
    """
    batch = batch.upcast()
    raw = RATIO_LEVELS[loss.ratio_level](batch)
    log_ratio = clamp_log_ratio(raw)
    terms = loss.surrogate.fn(log_ratio, batch.advantages, batch.logps, **loss.options)
    kl = _kl(loss, batch)
    if kl is not None:
        terms = terms + loss.beta * kl
    share = (batch.weights * terms).sum()
    with torch.no_grad():
        return LossOutput(share, {"loss": Metric.sum(share), **_metrics(loss, batch, raw, log_ratio, kl)})


def _kl(loss: Loss, batch: LossBatch) -> Tensor | None:
    if not loss.beta:
        return None
    if batch.ref_logps is None:
        raise ValueError(
            f"beta {loss.beta:g}: the KL penalty needs LossBatch.ref_logps; give them, or set beta 0"
        )
    return k3(batch.logps, batch.ref_logps)


def _metrics(loss: Loss, batch: LossBatch, raw: Tensor, log_ratio: Tensor, kl: Tensor | None) -> Metrics:
    """Metrics over *live* tokens: A ≠ 0, or all where a KL term is on. So dropping dead rows changes none."""
    live = (
        batch.advantages != 0 if loss.drops_dead_rows else torch.ones_like(batch.advantages, dtype=torch.bool)
    )
    ratio, advantages = log_ratio[live].exp(), batch.advantages[live]
    metrics = {
        "ratio/mean": Metric.mean(ratio),
        "ratio/max": Metric.max(ratio),
        "ratio/ess": Metric.derived("ess", ratio),
        "ratio/clamped": Metric.mean(raw[live].abs() > MAX_LOG_RATIO),
    }
    for name, values in loss.surrogate.health(ratio, advantages, **loss.options).items():
        metrics[name] = Metric.mean(values)
    if kl is not None:
        metrics["kl"] = Metric.mean(kl[live])
    return metrics
