"""Prompts of a dataset that is too large to be read at the start: its rows are read and tokenized when a step needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..common.noise import keyed_hash
from ..types import Prompt
from .addressed import AddressedRows
from .prompts import check_ids, row_at

CHECKED = 100  # rows that are checked at the start: this many first ones, and this many random ones
REDRAWS = 1000  # rows that may be drawn for one position and left out, before the run gives up
CHECK, REDRAW = 7002, 7003  # parts of the keys, so that these draws are independent of all others


class LazyPrompts:
    """Prompts in the same endless order as `Prompts`, without the rows in memory.

    A row that is left out is replaced by another, drawn by (seed, position, attempt). So resuming needs only the position,
    as with `Prompts`.

    Args:
        rows: the rows by their number.
        make_prompt: (a row's values, its place) → its prompt, or None for a row that is left out; raises ValueError for a bad
            one.
        longest: the limit on a prompt's length, in tokens.
        seed: the seed of the order.
        shuffle: draw the rows of each epoch in a new random order; else in the order given.
        flag: the option that named the dataset, for messages.

    Example:
        >>> from grpokit.data.addressed import ItemRows
        >>> rows = ItemRows([{"prompt": "a"}, {"prompt": "b"}], "train_dataset[{}]".format)
        >>> def make(row, place):
        ...     return Prompt(0, (1,), row["prompt"], {}, place)
        >>> LazyPrompts(rows, make, longest=8, shuffle=False).at(3).source
        'train_dataset[1]'
    """

    def __init__(
        self,
        rows: AddressedRows,
        make_prompt: Callable[[Any, str], Prompt | None],
        longest: int,
        *,
        seed: int = 42,
        shuffle: bool = True,
        flag: str = "--dataset",
    ) -> None:
        self.rows, self.make_prompt, self.longest = rows, make_prompt, longest
        self.seed, self.shuffle, self.flag = seed, shuffle, flag
        self.columns: set[str] = set()
        self._vocabulary: int | None = None
        found = [(row, self._made(row)) for row in rows_to_check(len(rows), seed)]
        self._checked = [replace(prompt, position=row) for row, prompt in found if prompt is not None]
        if not self._checked:
            raise ValueError(f"{flag}: no prompt is left: all {len(found)} rows that were tried are left out")
        self.columns = {name for prompt in self._checked for name in prompt.columns}
        self._checked = [self._filled(prompt) for prompt in self._checked]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, position: int) -> Prompt:
        """Returns the prompt at `position` ≥ 0 of the endless order; its epoch is `position // len(self)`."""
        return self.by_row(row_at(position, len(self), self.seed, self.shuffle), position)

    def by_row(self, row: int, position: int) -> Prompt:
        """Returns the prompt of a row, for a position. If the row is left out, returns another row's.

        Raises:
            ValueError: the row is bad, or too long, and may not be left out.
        """
        for attempt in range(1, REDRAWS + 1):
            prompt = self._made(row)
            if prompt is not None:
                return replace(self._filled(prompt), position=position)
            row = int(keyed_hash(self.seed, REDRAW, position, attempt)) % len(self)
        raise ValueError(
            f"{self.flag}: {REDRAWS:,} rows that were drawn for one prompt are all malformed or too long; look at them with "
            "grpokit inspect-data"
        )

    def _made(self, row: int) -> Prompt | None:
        place, values = self.rows.row(row)
        prompt = self.make_prompt(values, place)
        return prompt if prompt is None or self._vocabulary is None else check_ids(prompt, self._vocabulary)

    def _filled(self, prompt: Prompt) -> Prompt:
        return replace(prompt, columns={**dict.fromkeys(sorted(self.columns)), **prompt.columns})

    def check_ids(self, rows: int) -> None:
        """Raises ValueError for a prompt with a token that a model of so many rows lacks, now or when it is read."""
        self._vocabulary = rows
        for prompt in self._checked:
            check_ids(prompt, rows)

    def checked(self) -> list[Prompt]:
        """Returns the prompts that were read at the start. The position of each is its row's number."""
        return list(self._checked)

    def take(self, position: int, count: int) -> list[Prompt]:
        """Returns the `count` prompts from `position` on, over the ends of epochs."""
        return [self.at(position + offset) for offset in range(count)]

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """Returns the first `limit` prompts (None or 0: all) in the order of the data; positions count from 0."""
        found: list[Prompt] = []
        for row in range(len(self)):
            if limit and len(found) == limit:
                break
            prompt = self._made(row)
            if prompt is not None:
                found.append(replace(self._filled(prompt), position=len(found)))
        return found

    def reaches(self, position: int) -> bool:
        """Tells whether there is a prompt at `position`: the order never ends."""
        return True

    def data_state(self, position: int) -> None:
        """Nothing: the order is a function of seed and position."""

    def restore(self, saved: None) -> None:
        """Nothing to restore."""


def rows_to_check(count: int, seed: int) -> list[int]:
    """Returns the numbers of the rows that are read at the start: the first ones, and some that are drawn."""
    if count <= CHECKED:
        return list(range(count))
    drawn = keyed_hash(seed, CHECK, torch.arange(CHECKED)) % count
    return sorted({*range(CHECKED), *drawn.tolist()})
