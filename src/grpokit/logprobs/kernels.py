"""What happens to rows of logits between the matmuls, in torch: their statistics, then their gradient in place.

Both know log-probs and entropies only: the loss comes in between, as ∂L/∂logp and ∂L/∂entropy of each row.
`triton_rows` has the same two functions for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .head import Squash

# An entropy or a softcap needs x and e^x together: of this many bytes, a part of the chunk at a time.
BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 2**28}


@dataclass(frozen=True, eq=False)
class RowStats:
    """What is left of a row of logits x [V]. The target's term is kept apart from the others': 1 − p = others / Z.

    In a sum with the others a confident target's e^x would leave of 1 − p what float32 leaves of 1 − (1 − ε).
    """

    shift: Tensor  # [n] m = max x
    target: Tensor  # [n] x of the target, less m
    others: Tensor  # [n] Σ e^(x − m) over all but the target
    moment: Tensor | None  # [n] Σ (x − m)·e^(x − m) over all but the target, where the entropy is asked for

    @cached_property
    def weight(self) -> Tensor:
        """[n] e^(x − m) of the target."""
        return self.target.exp()

    @cached_property
    def total(self) -> Tensor:
        """[n] Z = Σ e^(x − m)."""
        return self.others + self.weight

    @cached_property
    def logps(self) -> Tensor:
        """[n] log-prob of the target: −log1p(others / e^target) for a likely one, which is precise near 0 too."""
        return torch.where(self.target > -1, -self._log1p, self.target - self._log)

    @cached_property
    def log_total(self) -> Tensor:
        """[n] log Z, likewise."""
        return torch.where(self.target > -1, self.target + self._log1p, self._log)

    @cached_property
    def entropies(self) -> Tensor | None:
        """[n] H = log Z − E[x − m], in nats."""
        if self.moment is None:
            return None
        own = torch.where(self.weight > 0, self.weight * self.target, 0.0)  # 0, not 0·∞, for a logit of −∞
        return self.log_total - (self.moment + own) / self.total

    @cached_property
    def _log1p(self) -> Tensor:
        return torch.log1p(self.others / self.weight)

    @cached_property
    def _log(self) -> Tensor:
        return self.total.log()


def row_statistics(logits: Tensor, targets: Tensor, squash: Squash, with_entropy: bool) -> RowStats:
    """Statistics of rows of raw logits [n, V], which become e^(x − m), with 0 at the target [n]."""
    if squash.slope is not None:
        logits.mul_(squash.slope).tanh_()
    shift = logits.amax(-1) * squash.gain
    torch.add(-shift[:, None], logits, alpha=squash.gain, out=logits)
    at = targets[:, None]
    target = logits.gather(1, at)[:, 0]
    moment = torch.empty_like(shift) if with_entropy else None
    if moment is None:
        logits.exp_().scatter_(1, at, 0.0)
    else:
        lowest = torch.finfo(logits.dtype).min  # not −∞, which times e^−∞ would be NaN
        for rows, part in _blocks(logits):
            torch.clamp(logits[rows], min=lowest, out=part)
            logits[rows].exp_().scatter_(1, at[rows], 0.0)
            moment[rows] = part.mul_(logits[rows]).sum(-1)
    return RowStats(shift, target, logits.sum(-1), moment)


def gradient_(
    logits: Tensor,
    targets: Tensor,
    stats: RowStats,
    squash: Squash,
    d_logps: Tensor,
    d_entropies: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """∂L/∂logp [n] (and ∂L/∂entropy) → ∂L/∂raw [n, V], over what `row_statistics` left in `logits`, as a view of type `dtype`.

    ∂logp/∂x_j = [j = target] − p_j and ∂H/∂x_j = −p_j·(log p_j + H); then x's slope to the raw logit.
    """
    at_target, factors = row_factors(stats, squash, d_logps, d_entropies)
    constant, slope = factors[0][:, None], factors[1]
    if slope is None and squash.slope is None:
        logits.mul_(constant)
    else:
        tiny = torch.finfo(logits.dtype).tiny  # where e^(x − m) is 0, any finite x serves
        for rows, part in _blocks(logits):
            shifted = torch.clamp(logits[rows], min=tiny, out=part).log_()
            if slope is None:
                logits[rows].mul_(constant[rows])
            else:  # over x − m itself, unless the softcap needs it still
                out = part if squash.slope is None else None
                logits[rows].mul_(torch.addcmul(constant[rows], slope[rows, None], shifted, out=out))
            if squash.slope is not None:
                tanh = shifted.add_(stats.shift[rows, None]).div_(squash.gain)
                logits[rows].mul_(tanh.square_().neg_().add_(1.0).mul_(squash.slope))
    logits.scatter_(1, targets[:, None], at_target[:, None])
    return logits if dtype == logits.dtype else _narrowed_(logits, dtype)


def row_factors(
    stats: RowStats, squash: Squash, d_logps: Tensor, d_entropies: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """The gradient at the target [n], and (a, b) [n]: elsewhere it is e^(x−m)·(a + b·(x − m)), times a softcap's slope.

    b is None without `d_entropies`.
    """
    total = stats.total
    at_target = d_logps * (stats.others / total)  # 1 − p, from the sum that the target isn't in
    constant, slope = d_logps, None
    entropies = stats.entropies
    if d_entropies is not None and entropies is not None:
        p = stats.weight / total
        at_target = at_target - d_entropies * torch.where(p > 0, p * (stats.logps + entropies), 0.0)
        constant, slope = d_logps + d_entropies * (entropies - stats.log_total), d_entropies
    if squash.slope is not None:
        tanh = (stats.target + stats.shift) / squash.gain
        at_target = at_target * squash.slope * (1 - tanh * tanh)
    scale = -squash.gain / total
    return at_target * squash.gain, (constant * scale, None if slope is None else slope * scale)


def _blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows in blocks, each with the same buffer of its shape beside."""
    n, vocabulary = logits.shape
    bound = BLOCK_BYTES.get(logits.device.type, BLOCK_BYTES["cuda"])
    size = max(1, min(n, bound // (vocabulary * logits.element_size())))
    buffer = logits.new_empty(size, vocabulary)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        yield rows, buffer[: rows.stop - start]


def _narrowed_(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, V] in `dtype`, over the first half (or less) of each row of `wide`."""
    narrow = wide.view(dtype)[:, : wide.shape[1]]
    for target, source in zip(narrow.split(256), wide.split(256), strict=True):
        target.copy_(source.to(dtype))  # by way of a copy, for they share their memory
    return narrow
