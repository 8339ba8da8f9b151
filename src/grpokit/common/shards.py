"""Whole tensors and shards of them. Sharding itself is in parallel.py."""

from __future__ import annotations

from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """Gathers the whole of a sharded tensor, a collective. Returns any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a sharded tensor, with the same memory. Returns any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]
