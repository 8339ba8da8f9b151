"""Saves and restores each rank's random state of Python, numpy and torch, because reward functions may use it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..parallel import World

RandomState = tuple[dict[str, Tensor], list[Any]]


def random_state_now() -> RandomState:
    """Returns this rank's random state: torch's and numpy's as tensors, Python's and the rest of numpy's as a JSON value."""
    numpy_state: Any = np.random.get_state(legacy=True)  # (name, [624] uint32, position, ...)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy_state[1].astype(np.int64))}
    return tensors, [random.getstate(), [numpy_state[0], *numpy_state[2:]]]


def random_states(world: World, mine: RandomState) -> tuple[dict[str, Tensor], list[Any]]:
    """Gathers every rank's state: numpy's and torch's as tensors, Python's and the rest of numpy's as JSON."""
    noise = {
        f"{name}/{r}": v for r, part in enumerate(world.gather_tensors(mine[0])) for name, v in part.items()
    }
    return noise, world.gather_json(mine[1])


def restore_random_state(pythons: list[Any], noise: Mapping[str, Tensor], rank: int) -> None:
    """Restores what `random_states` gathered. With more ranks than before, the additional ones keep their own state.

    Args:
        pythons: the JSON values of all ranks.
        noise: the tensors of all ranks.
        rank: this rank.
    """
    if rank < len(pythons):
        python_state, (kind, *rest) = pythons[rank]
        random.setstate(_tuples(python_state))
        np.random.set_state((kind, noise[f"numpy/{rank}"].numpy().astype(np.uint32), *rest))
        torch.set_rng_state(noise[f"torch/{rank}"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
