"""The computation on rows of logits between the matmuls, in torch: their statistics, then their gradient in place.

Both functions know log-probs and entropies only. The loss is evaluated between them and gives ∂L/∂logp and ∂L/∂entropy of
each row. `triton_kernels` has the same two functions for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .head import Squash

# An entropy or a softcap needs x and e^x together. This bounds the buffer, so a chunk is processed in blocks.
BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 2**28}


@dataclass(frozen=True, eq=False)
class RowStats:
    """The statistics of a row of logits x [V]. The target's term is kept apart from the others, so 1 − p = others / Z is precise.

    In one sum, a confident target's e^x would round 1 − p to a few float32 steps.
    """

    shift: Tensor  # [n] m = max x
    target: Tensor  # [n] x of the target, minus m
    others: Tensor  # [n] Σ e^(x − m) over all but the target
    moment: Tensor | None  # [n] Σ (x − m)·e^(x − m) over all but the target; None without entropies

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
        """[n] the target's log-prob.

        For a likely target it is −log1p(others / e^target), which is precise near 0 too.
        """
        return torch.where(self.target > -1, -self._log1p, self.target - self._log)

    @cached_property
    def log_total(self) -> Tensor:
        """[n] log Z, precise for a likely target too."""
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
    """Computes the statistics of rows of logits.

    Args:
        logits: [n, V] raw logits. Overwritten with e^(x − m), and 0 at the target.
        targets: [n] token ids.
        squash: the map from raw to tempered logits.
        with_entropy: whether to compute `moment`, for the entropies.

    Returns:
        Statistics of the n rows.
    """
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
        lowest = torch.finfo(logits.dtype).min  # not −∞, because −∞ · e^−∞ is NaN
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
    """Computes ∂L/∂raw [n, V] in place.

    ∂logp/∂x_j = [j = target] − p_j and ∂H/∂x_j = −p_j·(log p_j + H), times the slope of x with respect to the raw logit.

    Args:
        logits: [n, V] as `row_statistics` left them. Overwritten.
        targets: [n] token ids.
        stats: what `row_statistics` returned.
        squash: the map from raw to tempered logits.
        d_logps: [n] ∂L/∂logp.
        d_entropies: [n] ∂L/∂entropy, or None.
        dtype: the dtype of the result.

    Returns:
        [n, V], a view of `logits` as `dtype`.
    """
    at_target, factors = row_factors(stats, squash, d_logps, d_entropies)
    constant, slope = factors[0][:, None], factors[1]
    if slope is None and squash.slope is None:
        logits.mul_(constant)
    else:
        tiny = torch.finfo(logits.dtype).tiny  # where e^(x − m) is 0, any finite x will do
        for rows, part in _blocks(logits):
            shifted = torch.clamp(logits[rows], min=tiny, out=part).log_()
            if slope is None:
                logits[rows].mul_(constant[rows])
            else:  # over x − m itself, unless the softcap still needs it
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
    """Computes the gradient at the target [n] and (a, b) [n]: elsewhere it is e^(x−m)·(a + b·(x − m)).

    A softcap's slope multiplies both. b is None without `d_entropies`.

    Args:
        stats: what `row_statistics` returned.
        squash: the map from raw to tempered logits.
        d_logps: [n] ∂L/∂logp.
        d_entropies: [n] ∂L/∂entropy, or None.

    Returns:
        The gradient at the target, and (a, b).
    """
    total = stats.total
    at_target = d_logps * (stats.others / total)  # 1 − p, from the sum without the target
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
    """Yields the rows in blocks, each with one shared buffer of its shape."""
    n, vocabulary = logits.shape
    bound = BLOCK_BYTES.get(logits.device.type, BLOCK_BYTES["cuda"])
    size = max(1, min(n, bound // (vocabulary * logits.element_size())))
    buffer = logits.new_empty(size, vocabulary)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        yield rows, buffer[: rows.stop - start]


def _narrowed_(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns [n, V] in `dtype`, stored over the first half (or less) of each row of `wide`."""
    narrow = wide.view(dtype)[:, : wide.shape[1]]
    for target, source in zip(narrow.split(256), wide.split(256), strict=True):
        target.copy_(source.to(dtype))  # through a copy, because source and target share memory
    return narrow
