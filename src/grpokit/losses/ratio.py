"""Log-ratios: how far the policy has moved since the start of the step, at each level.

A sequence level takes its value from the statistics of the whole sequence, without gradient. Each token carries the
gradient of its own log-prob. Summed over the sequence, that is the gradient of the mean (or of the sum), so any subset
of the tokens can be a slice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .batch import LossBatch

# Applied before any exp. e^20 ≈ 5e8, whose square is below float32's maximum, so sums of squares are finite too.
MAX_LOG_RATIO = 20.0


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamps `log_ratio` [N] to ±20, with gradient 0 outside, so that its exp is finite in float32."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_log_ratio(batch: LossBatch, anchor: str = "old") -> Tensor:
    """Computes logp − old (or − sampler) [N], not clamped. Without `old_logps` it is 0, with the gradient of logp.

    Raises:
        ValueError: the anchor is the sampler and the batch has no `sampler_logps`.
    """
    if anchor == "sampler":
        if batch.sampler_logps is None:
            raise ValueError("LossBatch.sampler_logps is missing: this loss's ratio is to the sampler")
        return batch.logps - batch.sampler_logps
    return batch.logps - (batch.logps.detach() if batch.old_logps is None else batch.old_logps)


@dataclass(frozen=True)
class RatioLevel:
    """A ratio level: the sequence statistic that is its value (None: the token's own), and how a token's gradient enters.

    Example:
        >>> RATIO_LEVELS["sequence"].statistic
        'mean'
    """

    statistic: str | None  # a key of `sequence_statistics`
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]  # (token log-ratio d, statistic, T) [N] → log-ratio [N]
    formula: str  # log ρ in LaTeX
    one_advantage: bool = False  # the value is the sequence's, so a sequence needs one advantage


def _token(d: Tensor, _: Tensor, __: Tensor) -> Tensor:
    return d


def _mean(d: Tensor, mean: Tensor, _: Tensor) -> Tensor:
    return d - d.detach() + mean


def _sum(d: Tensor, total: Tensor, lengths: Tensor) -> Tensor:
    # ℓ is repeated on each of the T tokens, so the ratio's gradient through one token is T times that of its logp.
    return clamp_log_ratio(lengths * (d - d.detach()) + total)


RATIO_LEVELS: dict[str, RatioLevel] = {
    "token": RatioLevel(None, _token, r"\log\rho_t = \log\pi_t - \log\pi_{old,t}"),
    "sequence": RatioLevel(
        "mean",
        _mean,
        r"\log\rho = \frac{1}{T}\sum_t\left(\log\pi_t - \log\pi_{old,t}\right)",
        one_advantage=True,
    ),
    "sequence_token": RatioLevel(
        "mean",
        _mean,
        r"\log\rho_t = \log\pi_t - \mathrm{sg}(\log\pi_t)"
        r" + \mathrm{sg}\left(\frac{1}{T}\sum_k(\log\pi_k - \log\pi_{old,k})\right)",
    ),
    "sequence_product": RatioLevel(
        "sum", _sum, r"\log W = \sum_t\left(\log\pi_t - \log\pi_{old,t}\right)", one_advantage=True
    ),
}
