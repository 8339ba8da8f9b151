"""verl with grpokit's losses, as `actor_rollout_ref.actor.policy_loss.loss_mode: grpokit/NAME`.

Importing this module registers every loss with verl. verl imports it in every process, by the entry point `grpokit` of the
group `verl.plugins`. The class `PolicyLossConfig` is here too: it has the options that verl's config lacks.

    actor_rollout_ref:
      actor:
        policy_loss:
          _target_: grpokit.integrations.verl.PolicyLossConfig
          loss_mode: grpokit/vespo
          grpokit: {vespo_k_pos: 1.5}
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..losses import LOSSES, Counts, Loss, LossBatch, policy_loss, sequence_weights
from ..types import LossOutput
from .verl_options import AGGREGATIONS, loss_from_verl
from .versions import import_tested

TESTED = "0.9"
PREFIX = "grpokit/"

_core_algos, _config = import_tested("verl", TESTED, "verl.trainer.ppo.core_algos", "verl.workers.config")


@dataclass
class PolicyLossConfig(_config.PolicyLossConfig):
    """verl's config of the policy loss, with a place for the options of grpokit's losses.

    Args:
        grpokit: options of `grpokit.losses.make_loss` by name, such as {"vespo_k_pos": 1.5}.
    """

    grpokit: Mapping[str, Any] = field(default_factory=dict)


def register_losses() -> None:
    """Registers every row of LOSSES with verl, as `grpokit/NAME`. Call it again after `grpokit.losses.register`.

    A loss that verl can't compute is registered too. Its first call raises ValueError with the reason.
    """
    for name in LOSSES:
        _core_algos.register_policy_loss(PREFIX + name)(_for_verl(name))


def _for_verl(name: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """Returns the loss as verl calls it."""

    def compute_policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        loss = loss_from_verl(name, config, loss_agg_mode)
        _note_reduction(loss, loss_agg_mode)
        mask = response_mask.bool()
        info = config.global_batch_info
        weights = _weights(loss, mask.sum(-1), info)
        if rollout_is_weights is not None:
            weights = weights[:, None] * rollout_is_weights
        batch = LossBatch.from_padded(
            mask,
            logps=log_prob,
            old_logps=old_log_prob,
            sampler_logps=old_log_prob if loss.needs_sampler else None,
            advantages=advantages,
            weights=weights,
        )
        output = policy_loss(loss, batch)
        # verl's engines average gradients over the data-parallel ranks, whose shares must be summed.
        return output.loss * info["dp_size"], _metrics(output, batch)

    compute_policy_loss.__name__ = f"compute_policy_loss_grpokit_{name}"
    return compute_policy_loss


_noted: set[tuple[str, str]] = set()


def _note_reduction(loss: Loss, loss_agg_mode: str) -> None:
    """Warns once where `loss_agg_mode` isn't the reduction that the loss has in its paper."""
    own = LOSSES[loss.name].reduction
    if loss.reduction != own and (loss.name, loss.reduction) not in _noted:
        _noted.add((loss.name, loss.reduction))
        mode = next(mode for mode, reduction in AGGREGATIONS.items() if reduction == own)
        warnings.warn(
            f"loss_agg_mode {loss_agg_mode}: {PREFIX}{loss.name} divides by {loss.reduction} then. Its own is {own}; set "
            f"actor.loss_agg_mode={mode} for that",
            stacklevel=3,
        )


def _weights(loss: Loss, lengths: Tensor, info: Mapping[str, Any]) -> Tensor:
    """Computes the weights [B] of a micro-batch's rows from what verl knows about the whole mini-batch.

    Args:
        loss: names the reduction.
        lengths: [B] trainable tokens of each row.
        info: verl's `global_batch_info`. `global_batch_size` counts every row, those without a trainable token too.
    """
    rows, tokens = info.get("global_batch_size"), info.get("batch_num_tokens")
    if rows is None or tokens is None:
        raise ValueError(
            f"global_batch_size {rows}, batch_num_tokens {tokens}: {PREFIX}{loss.name} divides by the rows or the tokens of the "
            "whole mini-batch, and verl's worker must give both"
        )
    return sequence_weights(loss, lengths, Counts(int(rows), int(tokens), int(tokens), int(info["dp_size"])))


def _metrics(output: LossOutput, batch: LossBatch) -> dict[str, float]:
    """Returns the metrics of a micro-batch under verl's names, or as actor/NAME. verl averages them over micro-batches.

    Maxima and sums would be averaged too, so there are means only. A mean over no token is 0, as verl's are.
    """
    assert batch.old_logps is not None
    with torch.no_grad():
        kl = (batch.old_logps - batch.logps).double()
        found = {"actor/ppo_kl": kl.mean().item() if len(batch) else 0.0}
    means = {name: metric for name, metric in output.metrics.items() if metric.kind == "mean"}
    for name, metric in means.items():
        value = metric.value
        found[f"actor/{_VERL_NAMES.get(name, name)}"] = 0.0 if value != value else value
    return found


_VERL_NAMES = {"clip_ratio/region_mean": "pg_clipfrac", "clip_ratio/delta_mean": "pg_clipfrac_lower"}

register_losses()
