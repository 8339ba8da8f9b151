"""The matmuls of the head, and their dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .chunks import Rows
from .head import Head

NARROW = (torch.bfloat16, torch.float16)


def wide_dtype(hidden: Tensor, head: Head) -> torch.dtype:
    """Returns the dtype of logits and sums: float32, or float64 where an input is."""
    return torch.promote_types(torch.promote_types(hidden.dtype, head.weight.dtype), torch.float32)


def operand_dtype(hidden: Tensor, head: Head) -> torch.dtype:
    """Returns the dtype that the matmuls multiply.

    On a GPU it is bf16 or float16 where autocast or the parameters say so. Otherwise it is the wide dtype: on a CPU, bf16
    matmuls take 5 to 20 times as long as float32.
    """
    wide, kind = wide_dtype(hidden, head), hidden.device.type
    if kind != "cuda" or wide == torch.float64:
        return wide
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return head.weight.dtype if head.weight.dtype == hidden.dtype else wide


class Projection:
    """raw = h·Wᵀ + b for one call, chunk by chunk through one buffer; and its gradients dH, dW and db.

    The inputs are cast once. The gradients have the wide dtype, so that the sum of dW over chunks is not rounded to the
    parameters' dtype.

    Args:
        hidden: [N, H] hidden states.
        head: the output projection.
        operands: from `operand_dtype`, called in the forward, because a backward has no autocast.
        chunk: the most rows of a chunk.
        wanted: whether the gradients of hidden, weight and bias are computed.
    """

    def __init__(
        self, hidden: Tensor, head: Head, operands: torch.dtype, chunk: int, wanted: Sequence[bool]
    ) -> None:
        self.dtype = operands
        wide = wide_dtype(hidden, head)
        self.hidden = hidden.detach().to(self.dtype)  # [N, H]
        self.weight = head.weight.detach().to(self.dtype)  # [V, H]
        self.bias = None if head.bias is None else head.bias.detach().to(wide)  # [V]
        vocabulary, width = head.weight.shape
        self.buffer = hidden.new_empty(chunk, vocabulary, dtype=wide)
        self.d_hidden = hidden.new_empty(hidden.shape, dtype=wide) if wanted[0] else None
        self.d_weight = hidden.new_empty(vocabulary, width, dtype=wide) if wanted[1] else None
        self.d_bias = hidden.new_zeros(vocabulary, dtype=wide) if wanted[2] else None
        self._first = True  # the first chunk's dW overwrites the buffer, which saves a pass of zeros

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of hidden [N, H], weight [V, H] and bias [V]; None where not wanted."""
        return self.d_hidden, self.d_weight, self.d_bias

    def logits(self, rows: Rows) -> Tensor:
        """Computes raw [n, V] of the rows, in the wide dtype. The next call overwrites the buffer."""
        hidden = self.hidden[rows]
        out = self.buffer[: len(hidden)]
        if self.dtype != out.dtype:
            torch.mm(hidden, self.weight.t(), out_dtype=out.dtype, out=out)
        elif self.bias is not None:
            return torch.addmm(self.bias, hidden, self.weight.t(), out=out)
        else:
            torch.mm(hidden, self.weight.t(), out=out)
        return out if self.bias is None else out.add_(self.bias)

    def backward(self, d_logits: Tensor, rows: Rows) -> None:
        """Adds the rows' gradients. `d_logits` [n, V] is that of the raw logits, in the operands' dtype."""
        if self.d_hidden is not None:
            self.d_hidden[rows] = self._mm(d_logits, self.weight)
        if self.d_weight is not None:
            self._add_to(self.d_weight, d_logits.t(), self.hidden[rows])
        if self.d_bias is not None:
            self.d_bias += d_logits.sum(0, dtype=self.d_bias.dtype)

    def _mm(self, a: Tensor, b: Tensor) -> Tensor:
        narrow = self.dtype != self.buffer.dtype
        return torch.mm(a, b, out_dtype=self.buffer.dtype) if narrow else torch.mm(a, b)

    def _add_to(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        beta, self._first = float(not self._first), False
        if self.dtype != total.dtype:
            torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
        else:
            torch.addmm(total, a, b, beta=beta, out=total)
