"""Keyed noise: a uniform number per key. A draw depends only on its key, not on order, batch or rank.

A counter-based hash (SplitMix64's finalizer, Steele et al. 2014, folded over the parts of the key), without state.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # torch has no uint64 arithmetic; int64 wraps to the same bits
_M1 = 0xBF58476D1CE4E5B9 - 2**64
_M2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts logically. int64's own shift would copy the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _M1
    x = (x ^ _shift_right(x, 27)) * _M2
    return x ^ _shift_right(x, 31)


def keyed_hash(*key: Tensor | int) -> Tensor:
    """Returns a 64-bit hash (int64) per key. The parts are int64 tensors that broadcast together, or ints."""
    state = torch.zeros((), dtype=torch.int64)
    for part in key:
        part = torch.as_tensor(part, dtype=torch.int64)
        state = _mix(state.to(part.device) + (part + 1) * _GOLDEN)
    return state


def keyed_uniform(*key: Tensor | int) -> Tensor:
    """Returns a float64 in [0, 1) with 53 random bits per key.

    Example:
        >>> bool(keyed_uniform(42, torch.arange(3)).max() < 1)
        True
    """
    return _shift_right(keyed_hash(*key), 11).double() * 2.0**-53
