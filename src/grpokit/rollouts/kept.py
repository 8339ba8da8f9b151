"""Keeps an episode's keys and values from one turn to the next, so that a turn computes only what is new.

    turn 1    prompt ─────────── turn      computes prompt and turn
    turn 2    (kept ───────────) answer ── turn      computes answer and turn

The rows of a wave that end together leave their keys and values in one block. A block's columns may be padding, so it says
which of them hold tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Key = tuple[int, int]  # (position of the prompt, number of the generation)


@dataclass(frozen=True, eq=False)
class Block:
    """Keys and values of b rows.

    Example:
        >>> layer = torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4)
        >>> Block((layer,), torch.tensor([[False, True, True], [True, True, True]])).columns.sum(1)
        tensor([2, 3])
    """

    layers: tuple[tuple[Tensor, Tensor], ...]  # keys and values [b, K, C, D] of each layer
    columns: Tensor  # [b, C] bool: the columns that hold a token; they are in the order of the tokens


class TurnCache:
    """The blocks of the episodes that are under way.

    Args:
        most: the most bytes of all blocks together. Above it no block is kept, and the next turns compute everything.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: dict[Key, tuple[Block, int]] = {}
        self._bytes = 0

    def has_room(self, num_bytes: int) -> bool:
        """Reserves memory for a block. Returns False if there isn't enough: then no block of this turn is kept."""
        self._bytes += num_bytes
        if self._bytes > self.most:
            self._places.clear()
        return self._bytes <= self.most

    def add(self, keys: Sequence[Key], block: Block) -> None:
        """Adds the rows of a block, for which there is room."""
        self._places |= {key: (block, row) for row, key in enumerate(keys)}

    def take(self, keys: Sequence[Key], lengths: Sequence[int]) -> Block | None:
        """Returns one block with a row for each key, and empties the cache. Returns None if a key is missing.

        Its rows have no padding between tokens. Shorter rows end in unused columns.

        Args:
            keys: b episodes.
            lengths: the number of tokens of each episode, new tokens included. The block's layers have room for all of them.
        """
        places, self._places, self._bytes = self._places, {}, 0
        if not keys or any(key not in places for key in keys):
            return None
        blocks = {id(block): block for block, _ in places.values()}
        rows: dict[int, list[tuple[int, int]]] = {}  # block → (row here, row there)
        for here, key in enumerate(keys):
            block, there = places[key]
            rows.setdefault(id(block), []).append((here, there))
        held = {name: block.columns.sum(-1).tolist() for name, block in blocks.items()}
        counts = torch.tensor([held[id(places[key][0])][places[key][1]] for key in keys])
        width, room = int(counts.max()), int((torch.tensor(lengths) - counts).max()) + 16
        first = blocks[next(iter(rows))]
        columns = torch.arange(width, device=first.columns.device) < counts.to(first.columns.device)[:, None]
        # Zeros, not uninitialised memory: what a mask leaves out must still be finite.
        layers = [
            [t.new_zeros(len(keys), t.shape[1], width + room, t.shape[3]) for t in layer]
            for layer in first.layers
        ]
        for name, pairs in rows.items():
            block = blocks[name]
            here, there = torch.tensor(pairs, device=columns.device).unbind(1)
            # The columns that hold tokens come first, in order.
            order = block.columns[there].int().argsort(dim=1, descending=True, stable=True)[:, :width]
            for new, old in zip(layers, block.layers, strict=True):
                for target, source in zip(new, old, strict=True):
                    index = order[:, None, :, None].expand(-1, source.shape[1], -1, source.shape[3])
                    target[here, :, : order.shape[1]] = source[there].gather(2, index)
        return Block(tuple((k, v) for k, v in layers), columns)
