"""Where the rows are cut. The cuts never look at the loss, so that a scoring pass has the training pass's own."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

Rows = slice | Tensor  # of a flat list of tokens: a slice where it can be one, else positions

# Bytes of a chunk's logits, and rows that it has at least. Each chunk reads and writes all of dW, so fewer rows take
# longer: on a CPU 128 of them half as long again as 512, and on a GPU some thousands are needed for that to be little.
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
CHUNK_ROWS = 256


def default_chunk_tokens(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows whose logits [n, V] fit the bound of the device's kind; at least 256."""
    bound = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(CHUNK_ROWS, bound // (vocabulary * dtype.itemsize))


def cut(n: int, chunk_tokens: int, sequence_ids: Tensor | None = None) -> list[list[Rows]]:
    """Rows 0..n−1 in units of whole sequences, each a list of pieces of at most `chunk_tokens` rows.

    A unit is one piece of as many whole sequences as fit, or one longer sequence in even pieces. Without
    `sequence_ids` [n] each row is a sequence. n = 0 gives one empty piece. A sequence's rows need not be neighbours.
    """
    if sequence_ids is None:
        return [[piece] for piece in _even(0, n, chunk_tokens)]
    order, lengths = _runs(sequence_ids)
    units: list[list[Rows]] = []
    start = end = 0
    for length in lengths:
        if end > start and end + length - start > chunk_tokens:
            units.append(_even(start, end, chunk_tokens))
            start = end
        end += length
    units.append(_even(start, end, chunk_tokens))
    return units if order is None else [[order[piece] for piece in unit] for unit in units]


def length(rows: Rows) -> int:
    """How many rows these are."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def join(unit: list[Rows]) -> Rows:
    """The rows of neighbouring pieces in one."""
    first, last = unit[0], unit[-1]
    if isinstance(first, slice) and isinstance(last, slice):
        return slice(first.start, last.stop)
    return torch.cat([piece for piece in unit if isinstance(piece, Tensor)])


def _even(start: int, end: int, chunk_tokens: int) -> list[Rows]:
    """start..end in as few pieces as may be, all of about one size: a small rest would cost as much dW traffic as a full one."""
    pieces = max(1, -(-(end - start) // chunk_tokens))
    edges = [start + (end - start) * k // pieces for k in range(pieces + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _runs(sequence_ids: Tensor) -> tuple[Tensor | None, list[int]]:
    """Lengths of the sequences, and the order that makes their rows neighbours (None where they are already)."""
    ids, lengths = torch.unique_consecutive(sequence_ids, return_counts=True)
    if len(ids.unique()) == len(ids):
        return None, lengths.tolist()
    order = sequence_ids.argsort(stable=True)
    return order, torch.unique_consecutive(sequence_ids[order], return_counts=True)[1].tolist()
