"""Corrections for a sampler that differs from the trainer: weights c = π_old / μ, always detached, and their diagnostics.

The engine that sampled the tokens (μ) and the trainer at the start of the step (old) differ a little, by numerics or by
age. c is truncated (TIS, arXiv 2510.18927 and others) or masked (IcePop). OPSM drops sequences (arXiv 2512.02556).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Metric, Metrics
from .ratio import MAX_LOG_RATIO

CORRECTION_MODES = ("truncate", "mask")
CORRECTION_LEVELS = ("token", "sequence_product", "sequence_geometric")


@dataclass(frozen=True)
class Correction:
    """How tokens are weighted by c, at one of CORRECTION_LEVELS.

    Example:
        >>> Correction(mode="truncate", cap=2.0).weight(torch.tensor([0.5, 3.0]).log())
        tensor([0.5000, 2.0000])
    """

    mode: str = "truncate"
    level: str = "token"
    cap: float = 2.0  # truncate: min(c, cap)
    low: float = 0.5  # mask: c where low ≤ c ≤ high, else 0
    high: float = 5.0

    def of_sequence(
        self,
        log_weight: Tensor,
        sequence_sum: Callable[[Tensor], Tensor] = torch.sum,
        sequence_mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> Tensor:
        """Returns log c at this level: the tokens' own, or one value for each sequence.

        Args:
            log_weight: log c of the tokens [T] of one whole sequence, or [N] of several.
            sequence_sum: sums [N] within each sequence.
            sequence_mean: averages [N] within each sequence.

        Returns:
            [T] or [N] at token level, else a scalar or one value for each sequence.
        """
        if self.level == "token":
            return log_weight
        reduce = sequence_sum if self.level == "sequence_product" else sequence_mean
        return reduce(log_weight).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    def rejects(self, log_weight: Tensor) -> Tensor:
        """Returns [N] bool: the tokens that `mask` rejects. `truncate` rejects none."""
        if self.mode != "mask":
            return torch.zeros_like(log_weight, dtype=torch.bool)
        c = log_weight.exp()
        return (c < self.low) | (c > self.high)

    def weight(self, log_weight: Tensor) -> Tensor:
        """Returns the factor of each token [N] for log c at this level [N]."""
        c = log_weight.exp()
        return (
            c.clamp(max=self.cap)
            if self.mode == "truncate"
            else torch.where(self.rejects(log_weight), 0.0, c)
        )

    def log_weight(self, log_weight: Tensor) -> Tensor:
        """Returns the log of the factor [N], with log 1e-8 for a masked token.

        It serves losses that take the correction inside their ratio.
        """
        return self.weight(log_weight).clamp(min=1e-8).log().clamp(math.log(1e-8), MAX_LOG_RATIO)


def check_correction(correction: Correction) -> None:
    """Checks the correction's values.

    Raises:
        ValueError: a value cannot work. The message names the flag and a value that works.
    """
    if correction.mode not in CORRECTION_MODES:
        raise ValueError(f"correction_mode {correction.mode!r}: is not one of {', '.join(CORRECTION_MODES)}")
    if correction.level not in CORRECTION_LEVELS:
        raise ValueError(
            f"correction_level {correction.level!r}: is not one of {', '.join(CORRECTION_LEVELS)}"
        )
    if not 0 < correction.cap < math.inf:
        raise ValueError(f"correction_cap {correction.cap}: must be above 0; 2 is usual")
    if not 0 <= correction.low < correction.high < math.inf:
        raise ValueError(
            f"correction_low {correction.low}, correction_high {correction.high}: must be 0 ≤ low < high; "
            "0.5 and 5 are usual"
        )


def diagnostics(token_log_weight: Tensor, log_weight: Tensor, correction: Correction | None) -> Metrics:
    """Measures how far the sampler and the trainer are apart.

    Args:
        token_log_weight: [N] log c of the tokens.
        log_weight: [N] log c at the correction's level.
        correction: the correction in use, or None.

    Returns:
        Additive metrics by name.
    """
    x, c = token_log_weight, token_log_weight.exp()
    found = {
        "sampler_kl": Metric.mean(x.expm1() - x),  # k3 of KL(μ‖old), from samples of μ
        "sampler/kl_k1": Metric.mean(-x),
        "sampler/logp_diff_mean": Metric.mean(x.abs()),
        "sampler/logp_diff_max": Metric.max(x.abs()),
        "sampler/chi2": Metric.mean(c * c - 1),
        "sampler/ess": Metric.derived("ess", c),
    }
    if correction is not None and correction.mode == "truncate":
        found["sampler/truncated"] = Metric.mean(log_weight.exp() > correction.cap)
    elif correction is not None:
        found["sampler/masked"] = Metric.mean(correction.rejects(log_weight))
    return found
