"""Surrogates beyond the six of the mission: spo, gmpo, vespo and dppo."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ratio import MAX_LOG_RATIO
from .surrogate import TOKEN_LEVELS, above, at_least, surrogate


@surrogate(
    formula=r"\ell = -\rho\,A + \frac{|A|}{2\epsilon}\,(\rho-1)^2",
    zero_at_zero_advantage=True,
    check=lambda *, epsilon: above("epsilon", epsilon, 0, "0.2 is the paper's"),
)
def spo(log_ratio: Tensor, advantages: Tensor, logps: Tensor, *, epsilon: float = 0.2) -> Tensor:
    """ℓ = −ρ·A + |A|·(ρ−1)² / (2ε): a parabola whose best ratio is 1 ± ε (Simple Policy Optimization, 2401.16025).

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        epsilon: ε, the width of the quadratic penalty.

    Returns:
        [N] the loss ℓ of each token.
    """
    ratio = log_ratio.exp()
    return -ratio * advantages + advantages.abs() * (ratio - 1) ** 2 / (2 * epsilon)


def gmpo_clip(log_ratio: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float) -> Tensor:
    """d [N]: the log-ratio clamped on the side that A pushes to, sgn(A)·min(sgn(A)·d, sgn(A)·clamp(d, −ε, ε_high)).

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        epsilon: the log-ratio's bound on the side of A < 0.
        epsilon_high: its bound on the side of A > 0.

    Returns:
        [N] the clipped log-ratios, whose mean over the sequence is taken.
    """
    sign = advantages.sign()
    return sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-epsilon, epsilon_high))


@surrogate(
    formula=r"\ell = -A\,\exp\left(\frac{1}{T}\sum_t d_t\right),\quad "
    r"d = s\,\min\left(s\log\rho,\ s\,\mathrm{clip}(\log\rho,\,-\epsilon,\,\epsilon_{high})\right),\ s = \mathrm{sgn}\,A",
    zero_at_zero_advantage=True,
    ratio_levels=("sequence",),
    before_mean=gmpo_clip,
    one_advantage=True,
    check=lambda *, epsilon, epsilon_high: (
        above("epsilon", epsilon, 0, "0.4 is the paper's"),
        above("epsilon_high", epsilon_high, 0, "0.4 is the paper's"),
    ),
)
def gmpo(
    log_ratio: Tensor, advantages: Tensor, logps: Tensor, *, epsilon: float = 0.4, epsilon_high: float = 0.4
) -> Tensor:
    """ℓ = −A·exp(mean_t d): the geometric mean of ratios that were clipped one by one (GMPO, arXiv 2507.20673, eq. 4).

    ε and ε_high are in log space. `gmpo_clip` has made d before the mean was taken.

    Args:
        log_ratio: [N] the sequence's mean of the clipped log-ratios.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        epsilon: see `gmpo_clip`.
        epsilon_high: see `gmpo_clip`.

    Returns:
        [N] the loss ℓ of each token.
    """
    return -log_ratio.exp() * advantages


@surrogate(
    formula=r"\ell = -\mathrm{sg}\left(W^{k}\,e^{\lambda(1-W)}\right)\,A\,\log\pi,\quad W = \prod_t \rho_t",
    zero_at_zero_advantage=True,
    ratio_levels=("sequence_product",),
    correction_inside=True,
)
def vespo(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    *,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> Tensor:
    """ℓ = −sg(φ(W))·A·logp, φ(W) = W^k·exp(λ(1−W)), W the sequence's product of ratios (VESPO, arXiv 2602.10693).

    (k, λ) = (2, 3) where A ≥ 0, (3, 2) where A < 0. In log space, log W held to [log 1e-8, 20].

    Args:
        log_ratio: [N] log W, the sequence's sum of log-ratios.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        vespo_k_pos: k where A ≥ 0.
        vespo_lambda_pos: λ where A ≥ 0.
        vespo_k_neg: k where A < 0.
        vespo_lambda_neg: λ where A < 0.

    Returns:
        [N] the loss ℓ of each token.
    """
    log_w = log_ratio.detach().clamp(math.log(1e-8), MAX_LOG_RATIO)
    k = torch.where(advantages >= 0, advantages.new_tensor(vespo_k_pos), advantages.new_tensor(vespo_k_neg))
    lam = torch.where(
        advantages >= 0, advantages.new_tensor(vespo_lambda_pos), advantages.new_tensor(vespo_lambda_neg)
    )
    return -(k * log_w + lam * (1 - log_w.exp())).exp() * advantages * logps


def _dppo(log_ratio: Tensor, advantages: Tensor, logps: Tensor, drop: Tensor, cap: float) -> Tensor:
    ratio = log_ratio.exp().clamp(max=cap).detach()
    return -torch.where(drop, 0.0, ratio) * advantages * logps


def _dppo_check(*, dppo_delta: float, dppo_cap: float) -> None:
    above("dppo_delta", dppo_delta, 0, "0.2 (TV) and 0.05 (KL) are the paper's")
    at_least("dppo_cap", dppo_cap, 1, "20 is the paper's")


@surrogate(
    formula=r"\ell = -M\,\mathrm{sg}\left(\min(r,c)\right)\,A\,\log\pi,\quad r = \pi/\mu,\ "
    r"M = 0\ \mathrm{where}\ \mathrm{sgn}(A)\,(\pi-\mu) > \delta",
    zero_at_zero_advantage=True,
    ratio_levels=TOKEN_LEVELS,
    anchor="sampler",
    check=_dppo_check,
)
def dppo_tv(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    sampler_logps: Tensor,
    *,
    dppo_delta: float = 0.2,
    dppo_cap: float = 20.0,
) -> Tensor:
    """ℓ = −M·sg(min(π/μ, c))·A·logp; M drops a token that left the trust region |π − μ| ≤ δ on the side A pushes to.

    DPPO with total variation (arXiv 2602.04879). μ is the sampler: the only loss here that's anchored on it.

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        sampler_logps: [N] log-probs under the sampler, μ.
        dppo_delta: δ, the divergence beyond which a token is dropped.
        dppo_cap: c, the cap on π/μ.

    Returns:
        [N] the loss ℓ of each token.
    """
    gap = logps.detach().exp() - sampler_logps.exp()
    return _dppo(log_ratio, advantages, logps, gap * advantages.sign() > dppo_delta, dppo_cap)


def binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL between two coins, p·log(p/q) + (1−p)·log((1−p)/(1−q)), from log-probs [N]; 0 where both are sure."""
    p, rest_p, rest_q = log_p.exp(), -torch.expm1(log_p), -torch.expm1(log_q)
    tiny = torch.finfo(log_p.dtype).tiny
    heads = p * (log_p - log_q).clamp(-1e4, 1e4)
    tails = torch.where(
        rest_p > 0, rest_p * (rest_p.clamp(min=tiny).log() - rest_q.clamp(min=tiny).log()), 0.0
    )
    return heads + tails


@surrogate(
    formula=r"\ell = -M\,\mathrm{sg}\left(\min(r,c)\right)\,A\,\log\pi,\quad r = \pi/\mu,\ "
    r"M = 0\ \mathrm{where}\ \mathrm{sgn}(A)\,(\pi-\mu) > 0\ \mathrm{and}\ \mathrm{KL}_2(\mu\|\pi) > \delta",
    zero_at_zero_advantage=True,
    ratio_levels=TOKEN_LEVELS,
    anchor="sampler",
    check=_dppo_check,
)
def dppo_kl(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    sampler_logps: Tensor,
    *,
    dppo_delta: float = 0.05,
    dppo_cap: float = 20.0,
) -> Tensor:
    """ℓ = −M·sg(min(π/μ, c))·A·logp; M drops a token that A pushes on and whose binary KL(μ‖π) exceeds δ (2602.04879).

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        sampler_logps: [N] log-probs under the sampler, μ.
        dppo_delta: δ, the divergence beyond which a token is dropped.
        dppo_cap: c, the cap on π/μ.

    Returns:
        [N] the loss ℓ of each token.
    """
    pushed = (logps.detach() - sampler_logps) * advantages.sign() > 0
    drop = pushed & (binary_kl(sampler_logps, logps.detach()) > dppo_delta)
    return _dppo(log_ratio, advantages, logps, drop, dppo_cap)
