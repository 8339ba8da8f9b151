"""Estimators of the KL divergence to a reference, from samples of the policy (Schulman, joschu.net/blog/kl-approx)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .ratio import clamp_log_ratio


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """k1 = logp − ref for each token [N]: unbiased, of either sign.

    Its own gradient is that of logp, whose mean is zero, so it pulls towards nothing. It has no exp, so nothing is clamped.
    """
    return logps - ref_logps


def k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """k2 = ½(logp − ref)² for each token [N]: biased. On-policy, its gradient is the unbiased one of KL(π‖ref).

    It has no exp, so nothing is clamped: its pull grows with the distance.
    """
    return 0.5 * (logps - ref_logps) ** 2


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """k3 = exp(ref − logp) − (ref − logp) − 1 for each token [N]: unbiased for KL(π‖ref), never negative."""
    log_ratio = clamp_log_ratio(ref_logps - logps)
    # expm1 keeps the precision that exp(x) − 1 loses where the two models nearly agree.
    return log_ratio.expm1() - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
KL_GRADIENTS = ("own", "k2", "ratio")
TEACHER_GRADIENTS = ("k2", "ratio")  # the gradient of k1 itself pulls towards nothing


def kl_term(logps: Tensor, ref_logps: Tensor, log_ratio: Tensor, estimator: str, gradient: str) -> Tensor:
    """Computes the KL term: the value of `estimator`, with the gradient that `gradient` names.

    Args:
        logps: [N] log-probs under the policy, with gradient.
        ref_logps: [N] log-probs under the reference.
        log_ratio: [N] logp − old, for `ratio`.
        estimator: a key of KL_ESTIMATORS.
        gradient: `own`: the estimator's. `k2`: that of k2, unbiased on-policy. `ratio`: the estimator times ρ =
            exp(log_ratio), unbiased off-policy too (DeepSeek-V3.2, arXiv 2512.02556, eq. 7).

    Returns:
        [N], not yet multiplied by β.

    Example:
        >>> import torch
        >>> kl_term(torch.tensor([-1.0]), torch.tensor([-1.5]), torch.zeros(1), "k2", "own")
        tensor([0.1250])
    """
    value = KL_ESTIMATORS[estimator](logps, ref_logps)
    if gradient == "k2":
        slope = k2(logps, ref_logps)
        return value.detach() + slope - slope.detach()
    return value * clamp_log_ratio(log_ratio).exp() if gradient == "ratio" else value
