"""Estimators of the KL divergence to a reference, from samples of the policy (Schulman, joschu.net/blog/kl-approx)."""

from __future__ import annotations

from torch import Tensor

from .ratio import clamp_log_ratio


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """k3 = exp(ref − logp) − (ref − logp) − 1 for each token [N]: unbiased for KL(π‖ref) and never negative."""
    log_ratio = clamp_log_ratio(ref_logps - logps)
    # expm1 keeps the precision that exp(x) − 1 loses where the two models nearly agree.
    return log_ratio.expm1() - log_ratio
