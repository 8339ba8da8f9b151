"""Whole tensors and shards of them. Sharding itself is in parallel.py."""

from __future__ import annotations

from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor into a whole one. A collective. Returns any other tensor unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a sharded tensor, without a copy. Returns any other tensor unchanged."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]
