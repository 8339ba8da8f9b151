"""Surrogates: how a token's log-ratio and advantage become its loss ℓ. One short function each, all [N] → [N].

A surrogate is elementwise: (log_ratio, advantages, logps, its options) → ℓ. `log_ratio` is clamped already, so
exp is finite. Everything that averages is in `reductions.py`, so no surrogate can divide by the wrong number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """A surrogate and what must be known of it to compose, check and show it."""

    fn: Callable[..., Tensor]
    formula: str  # ℓ in LaTeX (the subset that matplotlib's mathtext draws)
    health: Callable[
        ..., dict[str, Tensor]
    ]  # (ratio, advantages, options) → metric name → values [N] to average
    check: Callable[..., None]  # raises ValueError naming the option, its value and one that works
    zero_at_zero_advantage: bool = (
        True  # ℓ = 0 where A = 0: what lets sequences with A = 0 leave before the forward
    )

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options, in the order of the function's keyword-only arguments."""
        parameters = inspect.signature(self.fn).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _at_least(name: str, value: float, low: float, hint: str = "") -> None:
    if not (value >= low and value < float("inf")):
        raise ValueError(f"{name} {value}: must be at least {low:g}" + (f"; {hint}" if hint else ""))


def _above(name: str, value: float, low: float, hint: str = "") -> None:
    if not (value > low and value < float("inf")):
        raise ValueError(f"{name} {value}: must be above {low:g}" + (f"; {hint}" if hint else ""))


# --------------------------------------------------------------------------- clip


def clip(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> Tensor:
    """ℓ = −min(min(ρ, δ)·A, clip(ρ, 1−ε, 1+ε_high)·A): PPO's clip (arXiv 1707.06347, eq. 7), GRPO (2402.03300, eq. 3).

    δ bounds the loss of tokens with A < 0 ("dual clip", 1912.09729, eq. 5); ε_high > ε is DAPO's clip-higher.
    """
    ratio = log_ratio.exp()
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return -torch.minimum(bounded * advantages, clipped * advantages)


def clip_health(
    ratio: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float, delta: float | None
) -> dict[str, Tensor]:
    """Shares of tokens without gradient: below the range with A < 0, above it with A > 0, and either way."""
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
    """ε in (0, 1), ε_high > 0, δ > 1 + ε_high."""
    _above("epsilon", epsilon, 0, "0.2 is usual")
    if epsilon >= 1:
        raise ValueError(f"epsilon {epsilon}: must be below 1 (the ratio is never below 0); 0.2 is usual")
    _above("epsilon_high", epsilon_high, 0, "0.28 is usual")
    if delta is not None and not 1 + epsilon_high < delta < float("inf"):
        raise ValueError(
            f"delta {delta}: must exceed 1 + epsilon_high = {1 + epsilon_high:g}, or it cuts into the clip range; "
            f"{max(2.0, 1.5 + epsilon_high):g} works"
        )


# --------------------------------------------------------------------------- cispo


def cispo(
    log_ratio: Tensor, advantages: Tensor, logps: Tensor, *, epsilon_high: float, epsilon_low_cap: float
) -> Tensor:
    """ℓ = −sg(clip(ρ, floor, cap))·A·logp: a capped, detached ratio, so no token loses its gradient.

    MiniMax-M1 (arXiv 2506.13585, eq. 4–5); the cap as an absolute number, as in ScaleRL (2510.13786).
    """
    ratio = log_ratio.exp().clamp(epsilon_low_cap, epsilon_high).detach()
    return -ratio * advantages * logps


def cispo_health(
    ratio: Tensor, advantages: Tensor, *, epsilon_high: float, epsilon_low_cap: float
) -> dict[str, Tensor]:
    """Shares of tokens whose ratio is held at the floor, at the cap, and either way; their gradient goes on."""
    low, high = ratio < epsilon_low_cap, ratio > epsilon_high
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}


def cispo_check(*, epsilon_high: float, epsilon_low_cap: float) -> None:
    """cap ≥ 1, floor in [0, 1]."""
    hint = (
        "for cispo it is an absolute cap on the ratio, not 1 + epsilon, so a value below 1 would scale every "
        "gradient down by it; 5.0 is the default"
    )
    _at_least("epsilon_high", epsilon_high, 1, hint)
    if not 0 <= epsilon_low_cap <= 1:
        raise ValueError(f"epsilon_low_cap {epsilon_low_cap}: must be between 0 (no floor) and 1")


# --------------------------------------------------------------------------- sapo


def _sapo_tau(advantages: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    # new_tensor: torch.where of two Python numbers would give float32 and lose 1.05's float64 digits.
    return torch.where(advantages > 0, advantages.new_tensor(tau_pos), advantages.new_tensor(tau_neg))


def sapo(
    log_ratio: Tensor, advantages: Tensor, logps: Tensor, *, tau_pos: float, tau_neg: float, sapo_gain: str
) -> Tensor:
    """ℓ = −gain·σ(τ(ρ−1))·A, τ = tau_pos where A > 0, else tau_neg: a soft gate (SAPO, arXiv 2511.20347, eq. 5–6).

    The paper's gain 4/τ makes the slope at ρ = 1 the plain policy gradient's; `none` is the bare gate.
    """
    tau = _sapo_tau(advantages, tau_pos, tau_neg)
    gain = 4 / tau if sapo_gain == "paper" else 1.0
    return -gain * (tau * (log_ratio.exp() - 1)).sigmoid() * advantages


def sapo_health(
    ratio: Tensor, advantages: Tensor, *, tau_pos: float, tau_neg: float, sapo_gain: str
) -> dict[str, Tensor]:
    """How open the gate is, 4σ(1−σ): 1 on-policy, towards 0 for tokens that moved far."""
    gate = (_sapo_tau(advantages, tau_pos, tau_neg) * (ratio - 1)).sigmoid()
    return {"gate/mean": 4 * gate * (1 - gate)}


def sapo_check(*, tau_pos: float, tau_neg: float, sapo_gain: str) -> None:
    """Both temperatures above 0; the gain one of its two names."""
    _above("tau_pos", tau_pos, 0, "1.0 is the paper's")
    _above("tau_neg", tau_neg, 0, "1.05 is the paper's")
    if sapo_gain not in ("paper", "none"):
        raise ValueError(f"sapo_gain {sapo_gain!r}: is not one of paper, none; paper is the default")


SURROGATES: Mapping[str, Surrogate] = {
    "clip": Surrogate(
        clip,
        r"\ell = -\min\left(\min(\rho,\delta)\,A,\ \mathrm{clip}(\rho,\,1-\epsilon,\,1+\epsilon_{high})\,A\right)",
        clip_health,
        clip_check,
    ),
    "cispo": Surrogate(
        cispo,
        r"\ell = -\mathrm{sg}\left(\min(\rho,\,\epsilon_{high})\right)\,A\,\log\pi",
        cispo_health,
        cispo_check,
    ),
    "sapo": Surrogate(
        sapo,
        r"\ell = -\frac{4}{\tau}\,\sigma\left(\tau(\rho-1)\right)\,A",
        sapo_health,
        sapo_check,
    ),
}


def check_options(surrogate: Surrogate, options: Mapping[str, Any]) -> None:
    """Raise ValueError where an option is not a number, or not one that the surrogate can work with."""
    for name, value in options.items():
        if (
            value is not None
            and name != "sapo_gain"
            and (isinstance(value, bool) or not isinstance(value, int | float))
        ):
            raise ValueError(f"{name} {value!r}: must be a number")
    surrogate.check(**options)
