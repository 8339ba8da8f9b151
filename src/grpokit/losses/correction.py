"""Corrections for a sampler that differs from the trainer: weights c = π_old / μ, always detached, and their diagnostics.

The engine that sampled the tokens (μ) and the trainer at the start of the step (old) differ a little, by numerics or by
age. `truncate` caps c (truncated importance sampling). `mask` takes c inside a range, else 0 (IcePop). `reject` takes 1 inside
its bounds, else 0 (verl). Off-policy sequence masking (OPSM, arXiv 2512.02556) is apart: see `opsm_threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..types import Metric, Metrics
from .ratio import MAX_LOG_RATIO

CORRECTION_MODES = ("truncate", "mask", "reject")
SEQUENCE_LEVELS = ("sequence_product", "sequence_geometric")
CORRECTION_LEVELS = ("token", *SEQUENCE_LEVELS, "sequence_max")
# What `reject` measures of x = log c: k1, k2 and k3 estimate KL(μ‖old).
ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"k1": lambda x: -x, "k2": lambda x: x.square() / 2, "k3": lambda x: x.expm1() - x}
)
# What other trainers do, by options of `make_loss`.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "trl": {"mode": "mask", "level": "sequence_product", "low": 0.0, "high": 3.0},
        "swift": {"mode": "truncate", "level": "token", "cap": 2.0},
        "verl-tis": {"mode": "truncate", "level": "token", "cap": 2.0},
        "icepop": {"mode": "mask", "level": "token", "low": 0.5, "high": 5.0},
    }
)

Reduce = Callable[[Tensor], Tensor]
WHOLE: Mapping[str, Reduce] = MappingProxyType({"sum": torch.sum, "mean": torch.mean, "max": torch.amax})
"""How the values [T] of one whole sequence become one."""


@dataclass(frozen=True)
class Correction:
    """How tokens are weighted by c, or rejected, at one of CORRECTION_LEVELS.

    Example:
        >>> Correction(mode="truncate", cap=2.0).weight(torch.tensor([0.5, 3.0]).log())
        tensor([0.5000, 2.0000])
    """

    mode: str = "truncate"
    level: str = "token"
    cap: float = 2.0  # truncate: min(c, cap)
    # truncate: max(c, low); mask: c where low ≤ c ≤ high, else 0; reject: see `rejects`. None: see `_DEFAULTS`.
    low: float | None = None
    high: float | None = None
    estimator: str = "k1"  # reject: what is bounded
    keep: str | None = (
        None  # one of SEQUENCE_LEVELS: only sequences with keep_low ≤ c ≤ keep_high keep their weights
    )
    keep_low: float = 0.0
    keep_high: float = math.inf
    normalize: bool = False  # weights are divided by their mean over the update, after truncation

    def __post_init__(self) -> None:
        """Fills in the bounds, and checks them.

        Raises:
            ValueError: a value can't work. The message names the option and a value that works.
        """
        numbers = {name: getattr(self, name) for name in ("cap", "low", "high", "keep_low", "keep_high")}
        for name, value in numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(f"correction_{name} {value!r}: must be a number")
        _check_words(self)
        if self.mode == "reject":
            _check_rejection(self)
        low, high = _DEFAULTS[self.mode]
        if self.mode == "reject" and self.estimator == "k1" and self.high is not None:
            low = 1 / self.high
        object.__setattr__(self, "low", low if self.low is None else self.low)
        object.__setattr__(self, "high", high if self.high is None else self.high)
        _check_bounds(self)

    @property
    def bounds(self) -> tuple[float, float]:
        """Returns the bounds (low, high)."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def __str__(self) -> str:
        """Names the options that make this correction, as `make_loss` takes them."""
        bounds = {"truncate": ("low", "cap"), "mask": ("low", "high"), "reject": ("estimator", "low", "high")}
        names = [*("mode", "level"), *bounds[self.mode]]
        if self.keep is not None:
            names += ["keep", "keep_low", "keep_high"]
        values = [(name, getattr(self, name)) for name in [*names, *["normalize"] * self.normalize]]
        return ", ".join(
            f"correction_{name} {value:g}" if isinstance(value, float) else f"correction_{name} {value}"
            for name, value in values
        )

    @property
    def needs_sequences(self) -> bool:
        """Whether a token's weight depends on the whole sequence."""
        return self.level != "token" or self.keep is not None

    def of_tokens(self, log_weight: Tensor) -> Tensor:
        """Returns what is reduced over the sequence [N]: log c, or the estimator that `reject` bounds."""
        return ESTIMATORS[self.estimator](log_weight) if self.mode == "reject" else log_weight

    def of_sequence(self, log_weight: Tensor, reduce: Mapping[str, Reduce] = WHOLE) -> Tensor:
        """Returns log c at this level, or the estimator that `reject` bounds.

        Args:
            log_weight: log c of the tokens [T] of one whole sequence, or [N] of several.
            reduce: `sum`, `mean` and `max` of [N] within each sequence.

        Returns:
            [T] or [N] at token level, else a scalar or one value for each sequence.
        """
        values = self.of_tokens(log_weight)
        if self.level == "token":
            return values
        value = reduce[_REDUCED[self.level]](values)
        return value if self.mode == "reject" else value.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    def keeps(self, log_weight: Tensor, reduce: Mapping[str, Reduce] = WHOLE) -> Tensor:
        """Returns whether each sequence keeps its weights: a bool for one, or for each. See `of_sequence`."""
        if self.keep is None:
            raise ValueError("keep: the correction has no bounds for sequences")
        c = reduce[_REDUCED[self.keep]](log_weight).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return (c >= self.keep_low) & (c <= self.keep_high)

    def rejects(self, value: Tensor) -> Tensor:
        """Returns [N] bool: where the weight is 0, for the value at this level [N]. `truncate` rejects none.

        `reject` keeps log low ≤ k1 ≤ log high, and k2 and k3 up to high.
        """
        if self.mode == "truncate":
            return torch.zeros_like(value, dtype=torch.bool)
        low, high = self.bounds
        if self.mode == "mask":
            c = value.exp()
            return (c < low) | (c > high)
        if self.estimator == "k1":
            return (value < math.log(low)) | (value > math.log(high))
        return value > high

    def weight(self, value: Tensor) -> Tensor:
        """Returns the factor of each token [N] for the value at this level [N], without `keep` and `normalize`."""
        if self.mode == "truncate":
            return value.exp().clamp(self.bounds[0], self.cap)
        return torch.where(self.rejects(value), 0.0, value.exp() if self.mode == "mask" else 1.0)

    def log_weight(self, value: Tensor) -> Tensor:
        """Returns the log of the factor [N], with log 1e-8 for a masked token.

        It serves losses that take the correction inside their ratio.
        """
        return self.weight(value).clamp(min=1e-8).log().clamp(math.log(1e-8), MAX_LOG_RATIO)


_DEFAULTS = {"truncate": (0.0, math.inf), "mask": (0.5, 5.0), "reject": (0.0, math.inf)}  # mode → low, high


def _check_words(c: Correction) -> None:
    only = "; sequence_max goes with reject" if c.level == "sequence_max" else ""
    for flag, value, allowed in (
        ("mode", c.mode, CORRECTION_MODES),
        ("level", c.level, CORRECTION_LEVELS if c.mode == "reject" else CORRECTION_LEVELS[:-1]),
        ("estimator", c.estimator, tuple(ESTIMATORS)),
        ("keep", c.keep, (None, *SEQUENCE_LEVELS)),
    ):
        if value not in allowed:
            raise ValueError(
                f"correction_{flag} {value!r}: is not one of {', '.join(name for name in allowed if name)}{only}"
            )


def _check_rejection(c: Correction) -> None:
    if c.high is None:
        raise ValueError(
            f"correction_mode reject: needs a bound on {c.estimator}; set correction_high (2 for k1 of a token, 0.1 for k3)"
        )
    if not 0 < c.high < math.inf:
        raise ValueError(
            f"correction_high {c.high}: must be finite and above 0; 2 is usual for k1 of a token, 0.1 for k3"
        )
    if c.estimator == "k1" and c.level == "sequence_max":
        raise ValueError("correction_level sequence_max: is for k2 and k3, whose largest value has a meaning")
    if c.estimator == "k1" and not 0 < (1 / c.high if c.low is None else c.low) < c.high:
        raise ValueError(
            f"correction_low {c.low}, correction_high {c.high}: the bounds of k1 are ratios, 0 < low < high; 0.5 and 2 are "
            "usual"
        )
    if c.estimator != "k1" and c.low is not None:
        raise ValueError(
            f"correction_low {c.low}: {c.estimator} is never below 0, so it has an upper bound alone"
        )


def _check_bounds(c: Correction) -> None:
    low, high = c.bounds
    if not 0 < c.cap < math.inf:
        raise ValueError(f"correction_cap {c.cap}: must be finite and above 0; 2 is usual")
    if c.mode == "truncate" and not 0 <= low < c.cap:
        raise ValueError(f"correction_low {low}, correction_cap {c.cap}: must be 0 ≤ low < cap; 0 is usual")
    if c.mode == "mask" and not 0 <= low < high < math.inf:
        raise ValueError(
            f"correction_low {low}, correction_high {high}: must be 0 ≤ low < high, both finite; 0.5 and 5 are usual"
        )
    if c.keep is not None and not 0 <= c.keep_low < c.keep_high:
        raise ValueError(
            f"correction_keep_low {c.keep_low}, correction_keep_high {c.keep_high}: must be 0 ≤ low < high; "
            "0.999 and 1.002 are usual for sequence_geometric"
        )
    if c.keep is not None and (c.keep_low, c.keep_high) == (0.0, math.inf):
        raise ValueError(
            f"correction_keep {c.keep}: keeps every sequence without a bound; set correction_keep_low or correction_keep_high"
        )


_REDUCED = {"sequence_product": "sum", "sequence_geometric": "mean", "sequence_max": "max"}


def diagnostics(
    token_log_weight: Tensor, value: Tensor, correction: Correction | None, kept: Tensor | None = None
) -> Metrics:
    """Measures how far the sampler and the trainer are apart.

    Args:
        token_log_weight: [N] log c of the tokens.
        value: [N] what the correction bounds, at its level.
        correction: the correction in use, or None.
        kept: [N] bool, whether the token's sequence is inside the bounds of `keep`; None without them.

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
    if correction is None:
        return found
    if correction.mode == "truncate":
        c = value.exp()
        found["sampler/truncated"] = Metric.mean((c > correction.cap) | (c < correction.bounds[0]))
    if correction.mode != "truncate" or kept is not None:
        lost = correction.rejects(value)
        found["sampler/masked"] = Metric.mean(lost if kept is None else lost | ~kept)
    return found


def of_sequences(old: Tensor, sampler: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Computes the diagnostics of B whole sequences that follow each other, by name, each [B].

    Args:
        old: [N] log-probs of the trainer at the start of the step.
        sampler: [N] log-probs of the sampler.
        lengths: [B] tokens of each sequence.

    Returns:
        The perplexities of sampler and trainer, the trainer's log-perplexity minus the sampler's, and c² − 1 for the
        product c of the sequence's weights.
    """
    index = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(lengths)).index_add(0, index, values)

    product = total(old - sampler).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    mean_old, mean_sampler = total(old) / lengths, total(sampler) / lengths
    return {
        "sampler/ppl": (-mean_sampler).exp(),
        "sampler/trainer_ppl": (-mean_old).exp(),
        "sampler/log_ppl_diff": mean_sampler - mean_old,
        "sampler/chi2_seq": (2 * product).exp() - 1,
    }
