"""Surrogates that must see more than their own token: its sequence, its group or the whole update.

Each has a gradient-free function of statistics over `Tokens` (whole sequences, groups or the update, sorted by sequence
and position) that returns a value for each token; the surrogate itself stays elementwise and takes it by name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.noise import keyed_hash
from .stats import Tokens, without_noise
from .surrogate import TOKEN_LEVELS, above, surrogate
from .surrogates import clip, clip_check, clip_health

# --------------------------------------------------------------------------- fipo


def discounted_future(values: Tensor, tokens: Tokens, gamma: float) -> Tensor:
    """F_t = Σ_{k ≥ t} γ^(k−t)·values_k over each sequence's trainable tokens [n]; k − t counts positions."""
    future = torch.zeros_like(values)
    # From the last token of each sequence to its first, all sequences at once: as many rounds as the longest has tokens.
    order = tokens.rank_from_end.argsort(stable=True)
    carry = values.new_zeros(tokens.num_sequences)
    later = tokens.positions.new_zeros(tokens.num_sequences)
    for round_, at in enumerate(order.split(torch.bincount(tokens.rank_from_end).tolist())):
        sequence, position = tokens.index[at], tokens.positions[at]
        gap = (later[sequence] - position).to(values.dtype) if round_ else torch.zeros_like(values[at])
        carry[sequence] = values[at] + gamma**gap * carry[sequence]
        later[sequence] = position
        future[at] = carry[sequence]
    return future


def fipo_statistics(
    tokens: Tokens, *, fipo_gamma: float, delta: float | None, **_: object
) -> dict[str, Tensor]:
    """`future` [n]: the discounted sum of later log-ratios, those with ρ > δ left out."""
    ratios = tokens.log_ratio
    kept = ratios if delta is None else torch.where(ratios.exp() > delta, 0.0, ratios)
    return {"future": discounted_future(kept, tokens, fipo_gamma)}


def _clip_part(options: dict) -> dict:
    return {name: options[name] for name in ("epsilon", "epsilon_high", "delta")}


@surrogate(
    formula=r"\ell = \ell_{clip}\,\mathrm{sg}(f),\quad f = \mathrm{clip}\left(e^{F_t},\,1,\,1.2\right),\ "
    r"F_t = \sum_{k\geq t}\gamma^{k-t}\log\rho_k",
    zero_at_zero_advantage=True,
    ratio_levels=TOKEN_LEVELS,
    needs_update="sequence",
    statistics=fipo_statistics,
    health=lambda ratio, advantages, **o: clip_health(ratio, advantages, **_clip_part(o)),
    check=lambda **o: clip_check(**_clip_part(o)),
)
def fipo(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    future: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    fipo_gamma: float = 2 ** (-1 / 32),
    fipo_low: float = 1.0,
    fipo_high: float = 1.2,
    fipo_safe_ratio: float = 4.0,
) -> Tensor:
    """clip × sg(f): tokens whose future the policy came to favour weigh up to 1.2 (FIPO, arXiv 2603.19835).

    f = clamp(exp(F_t), 1, 1.2); where A < 0 and ρ > 4 it is capped at 1.
    """
    factor = future.clamp(-20, 20).exp().clamp(fipo_low, fipo_high)
    unsafe = (advantages < 0) & (log_ratio.detach().exp() > fipo_safe_ratio)
    factor = torch.where(unsafe, factor.clamp(max=1.0), factor)
    return factor * clip(
        log_ratio, advantages, logps, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta
    )


# --------------------------------------------------------------------------- real


def real_statistics(tokens: Tokens, *, real_tau: float) -> dict[str, Tensor]:
    """`real_value`, `real_slope` [n]: each token's share of its group's value, and c_i / T_i = ∂L/∂s_i / T_i.

    s_i = mean_t(logp − old). A group with both labels has the value log(1 + Σ_neg e^(s/τ)) + log(1 + Σ_pos e^(−s/τ));
    L is their mean over the Q′ such groups of the update.
    """
    s, lengths = tokens.sequence_mean(tokens.log_ratio), tokens.sequence_lengths.to(tokens.log_ratio.dtype)
    sign, group = tokens.sequence_advantages.sign(), tokens.sequence_groups
    value, slope = torch.zeros_like(s), torch.zeros_like(s)
    both = [g for g in group.unique().tolist() if {-1.0, 1.0} <= set(sign[group == g].tolist())]
    for g in both:
        members = group == g
        labelled = members & (sign != 0)
        total = torch.zeros_like(s[:1])
        for label in (-1.0, 1.0):
            these = members & (sign == label)
            logits = torch.cat([s.new_zeros(1), -label * s[these] / real_tau])
            total = total + logits.logsumexp(0)
            slope[these] = -label / real_tau * logits.softmax(0)[1:] / len(both)
        value[labelled] = total / len(both) / lengths[labelled].sum()
    return {"real_value": value[tokens.index], "real_slope": (slope / lengths)[tokens.index]}


@surrogate(
    formula=r"L = \frac{1}{Q'}\sum_{groups}\left[\log\left(1+\sum_{A_j<0}e^{s_j/\tau}\right)"
    r" + \log\left(1+\sum_{A_j>0}e^{-s_j/\tau}\right)\right],\quad s_j = \frac{1}{T_j}\sum_t\log\rho_{j,t}",
    zero_at_zero_advantage=True,
    ratio_levels=TOKEN_LEVELS,
    reductions=("sequence_mean",),
    needs_update="group",
    statistics=real_statistics,
    one_advantage=True,
    weighs_itself=True,
    check=lambda *, real_tau: above("real_tau", real_tau, 0, "0.5 is the paper's"),
)
def real(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    real_value: Tensor,
    real_slope: Tensor,
    *,
    real_tau: float = 0.5,
) -> Tensor:
    """Rewards as labels: a classification loss of the group's mean log-ratios (REAL, arXiv 2602.05630).

    The token's share has the group's value, split over its labelled tokens, and the gradient c_i/T_i of its own log-ratio.
    """
    return real_value + real_slope * (log_ratio - log_ratio.detach())


# --------------------------------------------------------------------------- covariance


def covariance(tokens: Tokens) -> Tensor:
    """cov [n] = (A − mean A)·(logp − mean logp), the means over the update's tokens (arXiv 2505.22617, eq. 10)."""
    a, logps = tokens.advantages, tokens.logps
    return (a - a.mean()) * (logps - logps.mean())


def clip_cov_statistics(
    tokens: Tokens, *, cov_low: float, cov_high: float, cov_ratio: float, **options: float
) -> dict[str, Tensor]:
    """`selected` [n] bool: of the unclipped tokens with low < cov < high, those with the smallest keyed hashes."""
    cov = covariance(tokens)
    clipped = clip_health(tokens.log_ratio.exp(), tokens.advantages, **_clip_part(options))[
        "clip_ratio/region_mean"
    ]
    eligible = torch.nonzero((cov > cov_low) & (cov < cov_high) & ~clipped).flatten()
    # Smallest hashes, as unsigned numbers: flipping the sign bit makes the signed order the unsigned one.
    rank = keyed_hash(tokens.seed, tokens.version, tokens.sequence_ids, tokens.positions)[eligible] ^ (
        -(2**63)
    )
    chosen = eligible[rank.argsort(stable=True)[: max(1, int(cov_ratio * len(cov)))]]
    return {"selected": torch.zeros_like(cov).index_fill(0, chosen, 1.0)}


@surrogate(
    formula=r"\ell = \ell_{clip}\ \mathrm{without\ gradient\ on\ a\ few\ of\ } \omega_1 < \mathrm{cov} < \omega_2",
    zero_at_zero_advantage=True,
    ratio_levels=TOKEN_LEVELS,
    needs_update="step",
    statistics=clip_cov_statistics,
    shown=("selected",),
    health=lambda ratio, advantages, **o: clip_health(ratio, advantages, **_clip_part(o)),
    check=lambda **o: clip_check(**_clip_part(o)),
)
def clip_cov(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    selected: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    cov_ratio: float = 2e-4,
) -> Tensor:
    """clip, but a few tokens drawn from those of high covariance lose their gradient (Clip-Cov, 2505.22617, eq. 11)."""
    terms = clip(log_ratio, advantages, logps, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta)
    return torch.where(selected > 0, terms.detach(), terms)


def kl_cov_statistics(tokens: Tokens, *, kl_cov_ratio: float, **_: float) -> dict[str, Tensor]:
    """`selected` [n]: the tokens of largest cov; ties go by sequence and position, by which the tokens are sorted."""
    cov = covariance(tokens)
    chosen = without_noise(cov).argsort(descending=True, stable=True)[: max(1, int(kl_cov_ratio * len(cov)))]
    return {"selected": torch.zeros_like(cov).index_fill(0, chosen, 1.0)}


@surrogate(
    formula=r"\ell = -\rho\,A + \kappa\,|\log\rho|\ \mathrm{on\ the\ tokens\ of\ largest\ cov}",
    ratio_levels=TOKEN_LEVELS,
    needs_update="step",
    statistics=kl_cov_statistics,
    shown=("selected",),
)
def kl_cov(
    log_ratio: Tensor,
    advantages: Tensor,
    logps: Tensor,
    selected: Tensor,
    *,
    kl_cov_ratio: float = 2e-3,
    kl_cov_coef: float = 1.0,
) -> Tensor:
    """ℓ = −ρ·A, and coef·|log ρ| on the tokens of largest covariance (KL-Cov, arXiv 2505.22617, eq. 12)."""
    return -log_ratio.exp() * advantages + kl_cov_coef * selected * log_ratio.abs()


# --------------------------------------------------------------------------- m2po


def m2po_statistics(tokens: Tokens, *, m2_threshold: float) -> dict[str, Tensor]:
    """`kept` [n]: 1 but for the largest (log ρ)², dropped until the mean over the rest is at most the threshold."""
    m2 = tokens.log_ratio**2
    order = without_noise(m2).argsort(descending=True, stable=True)  # ties: by sequence and position
    rest = m2[order].flip(0).cumsum(0).flip(0)  # Σ over what is left once the first k are dropped
    left = torch.arange(len(m2), 0, -1, device=m2.device)
    dropped = int((rest > m2_threshold * left).sum())  # means fall as the largest go, so the first ones fail
    return {"kept": torch.ones_like(m2).index_fill(0, order[:dropped], 0.0)}


@surrogate(
    formula=r"\ell = -M\,\rho\,A,\quad M\ \mathrm{keeps\ }\frac{1}{|M|}\sum_M(\log\rho)^2 \leq \tau",
    zero_at_zero_advantage=True,
    ratio_levels=TOKEN_LEVELS,
    needs_update="step",
    statistics=m2po_statistics,
    shown=("kept",),
    check=lambda *, m2_threshold: above("m2_threshold", m2_threshold, 0, "0.04 is the paper's"),
)
def m2po(
    log_ratio: Tensor, advantages: Tensor, logps: Tensor, kept: Tensor, *, m2_threshold: float = 0.04
) -> Tensor:
    """ℓ = −M·ρ·A: the second moment of log ρ is held under a bound by dropping its largest (M2PO, arXiv 2510.01161)."""
    return -kept * log_ratio.exp() * advantages
