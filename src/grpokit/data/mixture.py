"""Several datasets in one order: a keyed draw says which one gives the prompt at a position."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from ..common.noise import keyed_uniform
from ..types import Prompt

BLOCK = 1 << 14  # positions whose datasets are drawn at once
DRAW = 7001  # the part of the key that tells these draws from others
SOURCE_COLUMN = "data_source"  # verl's name


class RowPrompts(Protocol):
    """The prompts of one dataset, whose rows can be counted: `Prompts` and `LazyPrompts`."""

    columns: set[str]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, or their limit."""
        ...

    def __len__(self) -> int:
        """Returns the number of rows."""
        ...

    def at(self, position: int) -> Prompt:
        """Returns the prompt at a position of its endless order."""
        ...

    def by_row(self, row: int, position: int) -> Prompt:
        """Returns the prompt of a row, for a position."""
        ...

    def checked(self) -> list[Prompt]:
        """Returns the prompts that were read at the start."""
        ...

    def check_ids(self, rows: int) -> None:
        """Raises ValueError for a prompt with a token id that is not below `rows`, the rows of the model's embedding."""
        ...

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """Returns the first prompts in the order of the data."""
        ...


def source_seed(seed: int, name: str) -> int:
    """Returns the seed of a dataset's own order. It depends on the dataset's name, and not on the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


class MixedPrompts:
    """Prompts of several datasets. Each has its own endless order, and goes on in it whenever it is drawn.

    The dataset of position k is a function of (seed, k) alone, and its n-th draw takes the n-th prompt of its own order. So
    resuming needs only the position.

    Args:
        parts: the prompts of each dataset, by its name. Their orders have seeds of their own.
        weights: the share of each dataset, in any unit; None: in proportion to their numbers of rows.
        seed: the seed of the draws.

    Example:
        >>> mixed = MixedPrompts({"math": math, "code": code}, [0.7, 0.3], seed=42)  # doctest: +SKIP
        >>> mixed.at(0).columns["data_source"]  # doctest: +SKIP
        'math'
    """

    def __init__(
        self, parts: Mapping[str, RowPrompts], weights: Sequence[float] | None = None, seed: int = 42
    ) -> None:
        self.names, self.parts, self.seed = tuple(parts), tuple(parts.values()), seed
        shares = np.array([len(part) for part in self.parts] if weights is None else weights, np.float64)
        self.shares = shares / shares.sum()
        self._bounds = np.cumsum(self.shares)[:-1]
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        # Uses of each dataset before each block [blocks + 1, datasets].
        self._before = [np.zeros(len(self.parts), np.int64)]
        self._draws = lru_cache(maxsize=4)(self._draw)
        self.columns = {SOURCE_COLUMN}.union(*(part.columns for part in self.parts))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(part.longest for part in self.parts)

    def _draw(self, block: int) -> np.ndarray:
        positions = torch.arange(block * BLOCK, (block + 1) * BLOCK)
        uniform = keyed_uniform(self.seed, DRAW, positions).numpy()
        return np.searchsorted(self._bounds, uniform, side="right")

    def place(self, position: int) -> tuple[int, int]:
        """Returns which dataset a position draws from, and how often that one was drawn before."""
        block, offset = divmod(position, BLOCK)
        while len(self._before) <= block:
            counts = np.bincount(self._draws(len(self._before) - 1), minlength=len(self.parts))
            self._before.append(self._before[-1] + counts)
        draws = self._draws(block)
        which = int(draws[offset])
        return which, int(self._before[block][which] + np.count_nonzero(draws[:offset] == which))

    def at(self, position: int) -> Prompt:
        """Returns the prompt at `position` ≥ 0 of the endless order."""
        which, use = self.place(position)
        return self._named(self.parts[which].at(use), which, position)

    def by_row(self, row: int, position: int) -> Prompt:
        """Returns the prompt of a row, for a position. Rows are counted through the datasets, one after the other."""
        which = int(np.searchsorted(self._ends, row, side="right"))
        own = row - (int(self._ends[which]) - len(self.parts[which]))
        return self._named(self.parts[which].by_row(own, position), which, position)

    def _named(self, prompt: Prompt, which: int, position: int) -> Prompt:
        columns: dict[str, Any] = {**dict.fromkeys(sorted(self.columns)), **prompt.columns}
        if columns[SOURCE_COLUMN] is None:
            columns[SOURCE_COLUMN] = self.names[which]
        return replace(prompt, position=position, columns=columns, dataset=self.names[which])

    def take(self, position: int, count: int) -> list[Prompt]:
        """Returns the `count` prompts from `position` on."""
        return [self.at(position + offset) for offset in range(count)]

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """Returns the first prompts of all datasets, one after the other, for evaluation. Weights don't matter there."""
        found = [(prompt, which) for which, part in enumerate(self.parts) for prompt in part.in_order(limit)]
        return [
            self._named(prompt, which, place) for place, (prompt, which) in enumerate(found[: limit or None])
        ]

    def checked(self) -> list[Prompt]:
        """Returns the prompts that were read at the start."""
        return [
            self._named(prompt, which, prompt.position)
            for which, part in enumerate(self.parts)
            for prompt in part.checked()
        ]

    def check_ids(self, rows: int) -> None:
        """Raises ValueError for the first prompt with a token that a model of so many rows lacks."""
        for part in self.parts:
            part.check_ids(rows)

    def reaches(self, position: int) -> bool:
        """Tells whether there is a prompt at `position`: the order never ends."""
        return True

    def data_state(self, position: int) -> None:
        """Nothing: the order is a function of seed and position."""

    def restore(self, saved: None) -> None:
        """Nothing to restore."""
