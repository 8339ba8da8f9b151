"""Surrogates that depend on more than their own token: on its sequence, its group or the whole update.

Each has a gradient-free statistics function. It reads `Tokens` (whole sequences, groups or the update, sorted by sequence
and position) and returns a value for each token. The surrogate itself is elementwise and takes these values by name.
`surrogates.py` describes the arguments that every surrogate has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.noise import keyed_hash
from .ratio import MAX_LOG_RATIO
from .stats import Tokens, without_noise
from .surrogate import TOKEN_LEVELS, above, surrogate
from .surrogates import clip, clip_check, clip_health

# --------------------------------------------------------------------------- fipo


def discounted_future(values: Tensor, tokens: Tokens, gamma: float) -> Tensor:
    """F_t = Σ_{k ≥ t} γ^(k−t)·values_k over the trainable tokens of each sequence. k − t counts positions.

    Example:
        >>> from grpokit.losses.stats import Tokens
        >>> two, zeros = torch.arange(2), torch.zeros(2).double()
        >>> tokens = Tokens(two * 0, two, two * 0, two * 0, zeros, zeros, zeros, zeros, zeros, zeros)  # one sequence
        >>> discounted_future(torch.tensor([1.0, 1.0]).double(), tokens, 0.5)
        tensor([1.5000, 1.0000], dtype=torch.float64)
    """
    future = torch.zeros_like(values)
    # Goes from each sequence's last token to its first, all sequences at once. The longest one sets the number of rounds.
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
    """Returns `future` [n]: the discounted sum of later log-ratios, without those where ρ > δ."""
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
    """clip × sg(f): a token whose later tokens became more likely weighs up to 1.2 (FIPO, arXiv 2603.19835).

    f = clamp(exp(F_t), 1, 1.2). It is at most 1 where A < 0 and ρ > 4.

    Args:
        log_ratio: [N] log ρ, clamped.
        advantages: [N].
        logps: [N].
        future: [N] F_t, from `fipo_statistics`.
        epsilon: clip range, as in `clip`.
        epsilon_high: clip range, as in `clip`.
        delta: bound on ρ, as in `clip`; log-ratios above it are left out of F_t.
        fipo_gamma: γ, the discount per position.
        fipo_low: the smallest f.
        fipo_high: the largest f.
        fipo_safe_ratio: the ratio above which a token with A < 0 is never amplified.

    Returns:
        ℓ [N].
    """
    factor = future.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(fipo_low, fipo_high)
    unsafe = (advantages < 0) & (log_ratio.detach().exp() > fipo_safe_ratio)
    factor = torch.where(unsafe, factor.clamp(max=1.0), factor)
    return factor * clip(
        log_ratio, advantages, logps, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta
    )


# --------------------------------------------------------------------------- real


def real_statistics(tokens: Tokens, *, real_tau: float) -> dict[str, Tensor]:
    """Returns `real_value` and `real_slope` [n]: each token's share of its group's value, and c_i / T_i = ∂L/∂s_i / T_i.

    s_i = mean_t(logp − old). A group with both labels has the value log(1 + Σ_neg e^(s/τ)) + log(1 + Σ_pos e^(−s/τ)),
    any other group 0. L is the mean over all Q groups of the update.
    """
    s, lengths = tokens.sequence_mean(tokens.log_ratio), tokens.sequence_lengths.to(tokens.log_ratio.dtype)
    sign, group = tokens.sequence_advantages.sign(), tokens.sequence_groups
    value, slope = torch.zeros_like(s), torch.zeros_like(s)
    groups = group.unique().tolist()
    for g in [g for g in groups if {-1.0, 1.0} <= set(sign[group == g].tolist())]:
        members = group == g
        labelled = members & (sign != 0)
        total = torch.zeros_like(s[:1])
        for label in (-1.0, 1.0):
            these = members & (sign == label)
            logits = torch.cat([s.new_zeros(1), -label * s[these] / real_tau])
            total = total + logits.logsumexp(0)
            slope[these] = -label / real_tau * logits.softmax(0)[1:] / len(groups)
        value[labelled] = total / len(groups) / lengths[labelled].sum()
    return {"real_value": value[tokens.index], "real_slope": (slope / lengths)[tokens.index]}


@surrogate(
    formula=r"L = \frac{1}{Q}\sum_{groups\ with\ both}\left[\log\left(1+\sum_{A_j<0}e^{s_j/\tau}\right)"
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

    A token's ℓ has as its value a share of the group's value, split over the labelled tokens. Its gradient is c_i/T_i times
    that of its own log-ratio.

    Args:
        log_ratio: [N] log ρ, clamped.
        advantages: [N], one value per sequence; the sign is the label.
        logps: [N].
        real_value: [N], from `real_statistics`.
        real_slope: [N], from `real_statistics`.
        real_tau: τ, the temperature of the classification.

    Returns:
        ℓ [N], weights included.
    """
    return real_value + real_slope * (log_ratio - log_ratio.detach())


# --------------------------------------------------------------------------- covariance


def covariance(tokens: Tokens) -> Tensor:
    """cov [n] = (A − mean A)·(logp − mean logp), with means over the update's tokens (arXiv 2505.22617, eq. 10)."""
    a, logps = tokens.advantages, tokens.logps
    return (a - a.mean()) * (logps - logps.mean())


def clip_cov_statistics(
    tokens: Tokens, *, cov_low: float, cov_high: float, cov_ratio: float, **options: float
) -> dict[str, Tensor]:
    """Returns `selected` [n]: 1 for the tokens that lose their gradient.

    The candidates are the unclipped tokens with low < cov < high. The keyed hash of a token draws among them.

    Args:
        tokens: the tokens of the update.
        cov_low: ω₁, the covariance above which a token may be selected.
        cov_high: ω₂, the covariance below which a token may be selected.
        cov_ratio: the share of the update's tokens that is selected.
        **options: those of `clip`.
    """
    cov = covariance(tokens)
    clipped = clip_health(tokens.log_ratio.exp(), tokens.advantages, **_clip_part(options))[
        "clip_ratio/region_mean"
    ]
    eligible = torch.nonzero((cov > cov_low) & (cov < cov_high) & ~clipped).flatten()
    # The smallest hashes as unsigned numbers: flipping the sign bit makes the signed order the unsigned one.
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
    """clip, but a few random tokens of high covariance lose their gradient (Clip-Cov, arXiv 2505.22617, eq. 11).

    Args:
        log_ratio: [N] log ρ, clamped.
        advantages: [N].
        logps: [N].
        selected: [N], from `clip_cov_statistics`.
        epsilon: clip range, as in `clip`.
        epsilon_high: clip range, as in `clip`.
        delta: bound on ρ, as in `clip`.
        cov_low: ω₁, the covariance above which a token may be selected.
        cov_high: ω₂, the covariance below which a token may be selected.
        cov_ratio: the share of the update's tokens that is selected.

    Returns:
        ℓ [N].
    """
    terms = clip(log_ratio, advantages, logps, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta)
    return torch.where(selected > 0, terms.detach(), terms)


def kl_cov_statistics(tokens: Tokens, *, kl_cov_ratio: float, **_: float) -> dict[str, Tensor]:
    """Returns `selected` [n]: 1 for the tokens of largest cov.

    The tokens are sorted by sequence and position, and that order breaks ties.
    """
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
    """ℓ = −ρ·A, plus coef·|log ρ| on the tokens of largest covariance (KL-Cov, arXiv 2505.22617, eq. 12).

    Args:
        log_ratio: [N] log ρ, clamped.
        advantages: [N].
        logps: [N].
        selected: [N], from `kl_cov_statistics`.
        kl_cov_ratio: the share of the update's tokens that is penalised.
        kl_cov_coef: the coefficient of the penalty.

    Returns:
        ℓ [N].
    """
    return -log_ratio.exp() * advantages + kl_cov_coef * selected * log_ratio.abs()


# --------------------------------------------------------------------------- m2po


NOISE = 1e-6  # log-ratios up to this are rounding, and their sign an accident of the layout


def m2po_statistics(tokens: Tokens, *, m2_threshold: float) -> dict[str, Tensor]:
    """Returns `kept` [n]: 0 for the tokens that are dropped, else 1.

    Only trust-region tokens can be dropped, those that moved the way their advantage pushes: A > 0 with ρ > 1, or A < 0
    with ρ < 1. The largest (log ρ)² among them are dropped until the mean over the rest of them is at most the threshold.
    """
    outward = torch.nonzero(tokens.advantages.sign() * tokens.log_ratio > NOISE).flatten()
    m2 = tokens.log_ratio[outward] ** 2
    order = without_noise(m2).argsort(descending=True, stable=True)  # sequence and position break ties
    rest = m2[order].flip(0).cumsum(0).flip(0)  # Σ over the tokens left after dropping the first k
    left = torch.arange(len(m2), 0, -1, device=m2.device)
    dropped = int((rest > m2_threshold * left).sum())  # the mean falls with every one dropped
    kept = torch.ones_like(tokens.log_ratio)
    return {"kept": kept.index_fill(0, outward[order[:dropped]], 0.0)}


@surrogate(
    formula=r"\ell = -M\,\rho\,A,\quad M\ \mathrm{keeps\ the\ mean\ of\ }(\log\rho)^2 \leq \tau"
    r"\ \mathrm{where\ }A\,\log\rho > 0",
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
    """ℓ = −M·ρ·A: bounds the second moment of log ρ where A pushes it on (M2PO, arXiv 2510.01161v2, Algorithm 1).

    M drops the largest of these tokens. It changes no count.

    Args:
        log_ratio: [N] log ρ, clamped.
        advantages: [N].
        logps: [N].
        kept: [N] M, from `m2po_statistics`.
        m2_threshold: the bound on the second moment.

    Returns:
        ℓ [N].
    """
    return -kept * log_ratio.exp() * advantages
