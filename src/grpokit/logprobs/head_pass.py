"""One call's rows on their way through the head: scored, then turned into gradients once a loss has given their slopes."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..types import LossOutput
from . import kernels as torch_rows
from .chunks import Rows, cut, default_chunk_tokens, join, length
from .head import Head, Squash, check_inputs
from .kernels import RowStats
from .projection import Projection, wide_dtype

log = logging.getLogger(__name__)

LossFn = Callable[[Tensor, Tensor | None, Rows], LossOutput]


class HeadPass:
    """The rows of one call, cut into units of pieces.

    `score` computes log-probs; `learn` also computes gradients, from the slopes ∂L/∂logp that a loss gives.

    Args:
        hidden: [N, H] hidden states.
        head: the output projection.
        targets: [N] token ids.
        temperature: of the distribution that was sampled from.
        with_entropy: whether to compute entropies.
        sequence_ids: [N] sequence of each row; None: each row is a sequence.
        chunk_tokens: the most rows of a piece; None: `default_chunk_tokens`.
        operands: the dtype that the matmuls multiply.
        wanted: whether hidden, weight and bias need a gradient.

    Raises:
        ValueError: shapes, targets or options do not fit.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        sequence_ids: Tensor | None,
        chunk_tokens: int | None,
        operands: torch.dtype,
        wanted: Sequence[bool],
    ) -> None:
        check_inputs(hidden, head, targets)
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"chunk_tokens {chunk_tokens}: must be at least 1")
        if sequence_ids is not None and sequence_ids.shape != targets.shape:
            raise ValueError(
                f"sequence_ids has shape {list(sequence_ids.shape)}; expected {list(targets.shape)}"
            )
        wide = wide_dtype(hidden, head)
        chunk = chunk_tokens or default_chunk_tokens(len(head.weight), wide, hidden.device)
        self.units = cut(len(targets), chunk, sequence_ids)
        self.targets, self.with_entropy = targets.long(), with_entropy
        self.squash = Squash.of(head, temperature)
        self.kernels = _row_kernels(hidden.device, wide)
        self.logps = hidden.new_empty(len(targets), dtype=wide)
        self.entropies = torch.empty_like(self.logps) if with_entropy else None
        longest = max(length(piece) for unit in self.units for piece in unit)
        self.projection = Projection(hidden, head, operands, longest, wanted)

    def score(self, rows: Rows) -> tuple[Tensor, RowStats]:
        """Computes the rows' log-probs and entropies.

        Returns the raw logits and statistics that `backward` needs. The next call overwrites them.
        """
        raw = self.projection.logits(rows)
        stats = self.kernels.row_statistics(raw, self.targets[rows], self.squash, self.with_entropy)
        self.logps[rows] = stats.logps
        if self.entropies is not None:
            self.entropies[rows] = stats.entropies
        return raw, stats

    def backward(
        self, rows: Rows, scored: tuple[Tensor, RowStats], d_logps: Tensor, d_entropies: Tensor | None
    ) -> None:
        """Adds the rows' part of the gradients.

        Args:
            rows: n rows.
            scored: what `score(rows)` returned.
            d_logps: [n] ∂L/∂logp.
            d_entropies: [n] ∂L/∂entropy, or None.
        """
        d_logits = self.kernels.gradient_(
            scored[0],
            self.targets[rows],
            scored[1],
            self.squash,
            d_logps,
            d_entropies,
            self.projection.dtype,
        )
        self.projection.backward(d_logits, rows)

    def evaluate(self, unit: list[Rows], loss_fn: LossFn) -> LossOutput:
        """Computes the loss of a unit's rows, without gradients."""
        for piece in unit:
            self.score(piece)
        rows = join(unit)
        return loss_fn(self.logps[rows], None if self.entropies is None else self.entropies[rows], rows)

    def learn(self, unit: list[Rows], loss_fn: LossFn) -> LossOutput:
        """Computes the loss of a unit's rows and adds their part of the gradients."""
        scored = None
        for piece in unit:
            scored = self.score(piece)
        rows = join(unit)
        output, slopes = _slopes(
            loss_fn, self.logps[rows], None if self.entropies is None else self.entropies[rows], rows
        )
        parts = [None if s is None else s.split([length(piece) for piece in unit]) for s in slopes]
        # From the last piece to the first: the last one's logits are still there, the others are computed again.
        for k in reversed(range(len(unit))):
            scored = scored or self.score(unit[k])
            d_logps, d_entropies = (None if part is None else part[k] for part in parts)
            assert d_logps is not None
            self.backward(unit[k], scored, d_logps, d_entropies)
            scored = None
        return output


def _slopes(
    loss_fn: LossFn, logps: Tensor, entropies: Tensor | None, rows: Rows
) -> tuple[LossOutput, tuple[Tensor, Tensor | None]]:
    """Returns the loss of some rows, ∂L/∂logp [n], and ∂L/∂entropy [n] (None where the loss has none)."""
    leaves = [x.detach().requires_grad_() for x in (logps, entropies) if x is not None]
    with torch.enable_grad():
        output = loss_fn(leaves[0], None if entropies is None else leaves[1], rows)
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if output.loss.requires_grad:
        found = torch.autograd.grad(output.loss, leaves, allow_unused=True)
    d_logps = torch.zeros_like(logps) if found[0] is None else found[0]
    return output, (d_logps, found[1] if len(found) > 1 else None)


def _row_kernels(device: torch.device, wide: torch.dtype) -> ModuleType:
    """Returns the module with `row_statistics` and `gradient_`: Triton's on a GPU in float32, else torch's.

    With TRITON_INTERPRET=1, a CPU uses Triton's too. Tests set it.
    """
    if wide == torch.float32 and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        return _triton_or_torch()
    return torch_rows


@functools.cache
def _triton_or_torch() -> ModuleType:
    try:
        from . import triton_kernels as triton_rows
    except ImportError as error:
        log.warning("the log-prob head runs without Triton, with more passes over the logits: %s", error)
        return torch_rows
    return triton_rows
