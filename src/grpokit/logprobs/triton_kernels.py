"""`kernels` for a GPU, in float32. Each function is one kernel with a program per row and the fewest passes over [n, V].

`row_statistics` reads the logits once and does not change them. `gradient_` reads them once more and overwrites them.
"""

# A type checker understands neither a kernel's launch nor its arithmetic, and may not find Triton at all.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportMissingImports=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .head import Squash
from .kernels import RowStats, row_factors

BLOCK = 4096  # logits of a row processed at a time: 16 KiB
NUM_WARPS = 8
LOWEST = tl.constexpr(-1e30)  # replaces −∞, because ∞ − ∞ and 0·∞ are NaN


def row_statistics(logits: Tensor, targets: Tensor, squash: Squash, with_entropy: bool) -> RowStats:
    """Computes the statistics of rows of logits, which it does not change. See `kernels.row_statistics`.

    Args:
        logits: [n, V] raw logits.
        targets: [n] token ids.
        squash: the map from raw to tempered logits.
        with_entropy: whether to compute `moment`, for the entropies.

    Returns:
        Statistics of the n rows.
    """
    n, vocabulary = logits.shape
    shift, target, others, moment = logits.new_empty(4, n)
    if n:
        _statistics_kernel[(n,)](
            logits,
            logits.stride(0),
            targets,
            shift,
            target,
            others,
            moment,
            squash.gain,
            squash.slope or 0.0,
            V=vocabulary,
            CAPPED=squash.slope is not None,
            ENTROPY=with_entropy,
            BLOCK=_block(vocabulary),
            num_warps=NUM_WARPS,
        )
    return RowStats(shift, target, others, moment if with_entropy else None)


def gradient_(
    logits: Tensor,
    targets: Tensor,
    stats: RowStats,
    squash: Squash,
    d_logps: Tensor,
    d_entropies: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Computes ∂L/∂raw [n, V] in place of the raw logits. See `kernels.gradient_`.

    Args:
        logits: [n, V] raw logits. Overwritten.
        targets: [n] token ids.
        stats: what `row_statistics` returned.
        squash: the map from raw to tempered logits.
        d_logps: [n] ∂L/∂logp.
        d_entropies: [n] ∂L/∂entropy, or None.
        dtype: the dtype of the result.

    Returns:
        [n, V], a view of `logits` as `dtype`.
    """
    n, vocabulary = logits.shape
    at_target, (constant, slope) = row_factors(stats, squash, d_logps, d_entropies)
    gradient = logits.view(dtype)[:, :vocabulary]
    if n:
        _gradient_kernel[(n,)](
            logits,
            logits.stride(0),
            gradient,
            gradient.stride(0),
            targets,
            stats.shift,
            at_target,
            constant,
            constant if slope is None else slope,
            squash.gain,
            squash.slope or 0.0,
            V=vocabulary,
            CAPPED=squash.slope is not None,
            ENTROPY=slope is not None,
            BLOCK=_block(vocabulary),
            num_warps=NUM_WARPS,
        )
    return gradient


def _block(vocabulary: int) -> int:
    return min(BLOCK, triton.next_power_of_2(vocabulary))


@triton.jit
def _tanh(x):
    """tanh and its slope, precise near ±1: with e = exp(−2|x|), (1 − e)/(1 + e) and 4e/(1 + e)²."""
    e = tl.exp(-2.0 * tl.abs(x))
    tanh = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -tanh, tanh), 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _statistics_kernel(
    logits_ptr,
    logits_stride,
    targets_ptr,
    shift_ptr,
    target_ptr,
    others_ptr,
    moment_ptr,
    gain,
    cap_slope,
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """m = max x, x_target − m, and over all but the target Σ e^(x−m) and Σ (x−m)·e^(x−m), online in one pass."""
    row = tl.program_id(0).to(tl.int64)  # n·V exceeds 32 bits
    logits_ptr += row * logits_stride
    wanted = tl.load(targets_ptr + row)
    shift = LOWEST
    target = 0.0
    others = 0.0
    moment = 0.0
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        x = tl.load(logits_ptr + columns, mask=inside, other=0.0)
        if CAPPED:
            x, _ = _tanh(x * cap_slope)
        x = tl.where(inside, x * gain, -float("inf"))
        target += tl.sum(tl.where(columns == wanted, x, 0.0), axis=0)
        higher = tl.maximum(shift, tl.max(x, axis=0))
        back = shift - higher
        rescale = tl.exp(back)
        x = tl.maximum(x - higher, LOWEST)
        exps = tl.where(columns == wanted, 0.0, tl.exp(x))
        if ENTROPY:
            moment = rescale * (moment + back * others) + tl.sum(exps * x, axis=0)
        others = rescale * others + tl.sum(exps, axis=0)
        shift = higher
    tl.store(shift_ptr + row, shift)
    tl.store(target_ptr + row, target - shift)
    tl.store(others_ptr + row, others)
    if ENTROPY:
        tl.store(moment_ptr + row, moment)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    logits_stride,
    gradient_ptr,
    gradient_stride,
    targets_ptr,
    shift_ptr,
    at_target_ptr,
    constant_ptr,
    slope_ptr,
    gain,
    cap_slope,
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """e^(x−m)·(a + b·(x − m)), and the target's own value; both times the slope of the softcap."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    gradient_ptr += row * gradient_stride
    wanted = tl.load(targets_ptr + row)
    shift = tl.load(shift_ptr + row)
    at_target = tl.load(at_target_ptr + row)
    factor = tl.load(constant_ptr + row)
    slope = tl.load(slope_ptr + row)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        x = tl.load(logits_ptr + columns, mask=inside, other=0.0)
        if CAPPED:
            x, bend = _tanh(x * cap_slope)
        x = tl.maximum(x * gain - shift, LOWEST)
        exps = tl.exp(x)
        if ENTROPY:
            d = exps * (factor + slope * x)
        else:
            d = exps * factor
        if CAPPED:
            d *= bend * cap_slope
        d = tl.where(columns == wanted, at_target, d)
        # A narrower gradient overwrites the first half of its own row. All threads must have read that part first.
        tl.debug_barrier()
        tl.store(gradient_ptr + columns, d.to(gradient_ptr.dtype.element_ty), mask=inside)
