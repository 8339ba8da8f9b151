"""Surrogates: how a token's log-ratio and advantage become its loss ℓ. Each is one short function.

Everything here is elementwise. The averages are in `reductions.py`, so no surrogate can divide by the wrong number.
Surrogates that depend on more than their own token are in `coupled.py`.

Surrogates beyond the mission's six are in `other_surrogates.py`.

Example:
    >>> clip(torch.tensor([1.5]).log(), torch.tensor([1.0]), torch.tensor([-1.0]), epsilon=0.2)
    tensor([-1.2000])
"""

from __future__ import annotations

import torch
from torch import Tensor

from .surrogate import TOKEN_LEVELS, above, at_least, surrogate

# --------------------------------------------------------------------------- clip


def clip_health(
    ratio: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float, delta: float | None
) -> dict[str, Tensor]:
    """Returns the tokens without gradient: below the range with A < 0, above it with A > 0, and either.

    Args:
        ratio: [N] importance ratios ρ.
        advantages: [N] advantages A.
        epsilon: the clip range below 1.
        epsilon_high: the clip range above 1.
        delta: the bound on ρ where A < 0, or None.

    Returns:
        Metric name → [N] bool.
    """
    low = (ratio < 1 - epsilon) & (advantages < 0)
    high = (ratio > 1 + epsilon_high) & (advantages > 0)
    bounded = {} if delta is None else {"clip_ratio/delta_mean": (ratio > delta) & (advantages < 0)}
    region = low | high if delta is None else low | high | bounded["clip_ratio/delta_mean"]
    return {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": region,
        **bounded,
    }


def clip_check(*, epsilon: float, epsilon_high: float, delta: float | None) -> None:
    """Checks that ε is in (0, 1), ε_high > 0 and δ > 1 + ε_high."""
    above("epsilon", epsilon, 0, "0.2 is usual")
    if epsilon >= 1:
        raise ValueError(f"epsilon {epsilon}: must be below 1 (the ratio is never below 0); 0.2 is usual")
    above("epsilon_high", epsilon_high, 0, "0.28 is usual")
    if delta is not None and not 1 + epsilon_high < delta < float("inf"):
        raise ValueError(
            f"delta {delta}: must exceed 1 + epsilon_high = {1 + epsilon_high:g}, or it cuts into the clip range; "
            f"{max(2.0, 1.5 + epsilon_high):g} works"
        )


@surrogate(
    formula=r"\ell = -\min\left(\min(\rho,\delta)\,A,\ \mathrm{clip}(\rho,\,1-\epsilon,\,1+\epsilon_{high})\,A\right)",
    zero_at_zero_advantage=True,
    health=clip_health,
    check=clip_check,
)
def clip(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """ℓ = −min(min(ρ, δ)·A, clip(ρ, 1−ε, 1+ε_high)·A): PPO's clip (arXiv 1707.06347, eq. 7), GRPO (2402.03300, eq. 3).

    δ bounds the loss of tokens with A < 0 ("dual clip", 1912.09729, eq. 5); ε_high > ε is DAPO's clip-higher.

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        epsilon: the clip range below 1.
        epsilon_high: the clip range above 1 (None: epsilon).
        delta: the bound on ρ where A < 0; None: no bound.

    Returns:
        [N] the loss ℓ of each token.
    """
    ratio = log_ratio.exp()
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high))
    return -torch.minimum(bounded * advantages, clipped * advantages)


# --------------------------------------------------------------------------- cispo


def cispo_health(
    ratio: Tensor, advantages: Tensor, *, epsilon_high: float, epsilon_low_cap: float
) -> dict[str, Tensor]:
    """Returns the tokens whose ratio is at the floor, at the cap, and either. They keep their gradient.

    Args:
        ratio: [N] importance ratios ρ.
        advantages: [N] advantages A.
        epsilon_high: the cap on ρ.
        epsilon_low_cap: the floor of ρ.

    Returns:
        Metric name → [N] bool.
    """
    low, high = ratio < epsilon_low_cap, ratio > epsilon_high
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}


def cispo_check(*, epsilon_high: float, epsilon_low_cap: float) -> None:
    """Checks that the cap is at least 1 and the floor is in [0, 1]."""
    hint = (
        "for cispo it is an absolute cap on the ratio, not 1 + epsilon, so a value below 1 would scale every "
        "gradient down by it; 5.0 is the default"
    )
    at_least("epsilon_high", epsilon_high, 1, hint)
    if not 0 <= epsilon_low_cap <= 1:
        raise ValueError(f"epsilon_low_cap {epsilon_low_cap}: must be between 0 (no floor) and 1")


@surrogate(
    formula=r"\ell = -\mathrm{sg}\left(\min(\rho,\,\epsilon_{high})\right)\,A\,\log\pi",
    zero_at_zero_advantage=True,
    health=cispo_health,
    check=cispo_check,
)
def cispo(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    *,
    epsilon_high: float = 5.0,
    epsilon_low_cap: float = 0.0,
) -> Tensor:
    """ℓ = −sg(clip(ρ, floor, cap))·A·logp: a capped, detached ratio, so no token loses its gradient.

    MiniMax-M1 (arXiv 2506.13585, eq. 4–5). The cap `epsilon_high` is an absolute number, as in ScaleRL (2510.13786).
    `epsilon_low_cap` is the floor.

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        epsilon_high: the absolute cap on ρ, at least 1.
        epsilon_low_cap: the absolute floor of ρ.

    Returns:
        [N] the loss ℓ of each token.
    """
    ratio = log_ratio.exp().clamp(epsilon_low_cap, epsilon_high).detach()
    return -ratio * advantages * logps


# --------------------------------------------------------------------------- sapo


def _sapo_tau(advantages: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    # torch.where of two Python numbers would return float32; new_tensor keeps all float64 digits of 1.05.
    return torch.where(advantages > 0, advantages.new_tensor(tau_pos), advantages.new_tensor(tau_neg))


def sapo_health(
    ratio: Tensor, advantages: Tensor, *, tau_pos: float, tau_neg: float, sapo_gain: str
) -> dict[str, Tensor]:
    """Returns how open the gate is, 4σ(1−σ): 1 on-policy, towards 0 for tokens that moved far.

    Args:
        ratio: [N] importance ratios ρ.
        advantages: [N] advantages A.
        tau_pos: τ where A > 0.
        tau_neg: τ elsewhere.
        sapo_gain: `paper` or `none`; it does not change the gate.

    Returns:
        `gate/mean` → [N] in [0, 1].
    """
    gate = (_sapo_tau(advantages, tau_pos, tau_neg) * (ratio - 1)).sigmoid()
    return {"gate/mean": 4 * gate * (1 - gate)}


def sapo_check(*, tau_pos: float, tau_neg: float, sapo_gain: str) -> None:
    """Checks that both temperatures are above 0 and the gain has one of its two names."""
    above("tau_pos", tau_pos, 0, "1.0 is the paper's")
    above("tau_neg", tau_neg, 0, "1.05 is the paper's")
    if sapo_gain not in ("paper", "none"):
        raise ValueError(f"sapo_gain {sapo_gain!r}: is not one of paper, none; paper is the default")


@surrogate(
    formula=r"\ell = -\frac{4}{\tau}\,\sigma\left(\tau(\rho-1)\right)\,A",
    zero_at_zero_advantage=True,
    health=sapo_health,
    check=sapo_check,
)
def sapo(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    sapo_gain: str = "paper",
) -> Tensor:
    """ℓ = −gain·σ(τ(ρ−1))·A, τ = tau_pos where A > 0, else tau_neg: a soft gate (SAPO, arXiv 2511.20347, eq. 5–6).

    With the paper's gain 4/τ, the slope at ρ = 1 is that of the plain policy gradient. `sapo_gain="none"` is the bare gate.

    Args:
        log_ratio: [N] log ρ, at the loss's ratio level.
        advantages: [N] advantages A.
        logps: [N] log-probs under the policy, with gradient.
        tau_pos: τ where A > 0.
        tau_neg: τ elsewhere.
        sapo_gain: `paper`: the gain 4/τ; `none`: 1.

    Returns:
        [N] the loss ℓ of each token.
    """
    tau = _sapo_tau(advantages, tau_pos, tau_neg)
    gain = 4 / tau if sapo_gain == "paper" else 1.0
    return -gain * (tau * (log_ratio.exp() - 1)).sigmoid() * advantages


# --------------------------------------------------------------------------- without a clip


@surrogate(formula=r"\ell = -A\,\log\pi", zero_at_zero_advantage=True, ratio_levels=TOKEN_LEVELS)
def reinforce(log_ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
    """ℓ = −A·logp: the plain policy gradient (Williams 1992); GPG (arXiv 2504.02546) without its factor α. No ratio at all."""
    return -advantages * logps


@surrogate(formula=r"\ell = -\rho\,A", zero_at_zero_advantage=True)
def importance_sampling(log_ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
    """ℓ = −ρ·A: the unclipped objective that PPO's clip was made to tame (arXiv 1707.06347, eq. 6)."""
    return -log_ratio.exp() * advantages
