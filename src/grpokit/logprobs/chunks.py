"""Cuts rows of logits into chunks. The cuts do not depend on the loss, so scoring and training use the same ones."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

Rows = slice | Tensor  # rows of a flat list of tokens: a slice if they are neighbours, else positions

# The bytes of a chunk's logits, and the fewest rows of a chunk. Each chunk reads and writes all of dW, so small chunks are
# slow. On a CPU, chunks of 128 rows take half as long again as chunks of 512. A GPU needs some thousands of rows.
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
CHUNK_ROWS = 256


def default_chunk_tokens(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the number of rows whose logits [n, V] fit the device's bound; at least 256."""
    bound = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(CHUNK_ROWS, bound // (vocabulary * dtype.itemsize))


def cut(n: int, chunk_tokens: int, sequence_ids: Tensor | None = None) -> list[list[Rows]]:
    """Cuts rows 0..n−1 into units of whole sequences. Each unit is a list of pieces of at most `chunk_tokens` rows.

    A unit is one piece with as many whole sequences as fit, or one longer sequence in even pieces. The rows of a sequence
    need not be neighbours. n = 0 gives one empty piece.

    Args:
        n: the number of rows.
        chunk_tokens: the most rows of a piece.
        sequence_ids: [n] the sequence of each row; None: each row is a sequence.

    Example:
        >>> cut(5, 3, torch.tensor([0, 0, 1, 1, 1]))
        [[slice(0, 2, None)], [slice(2, 5, None)]]
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
    """Returns the number of rows."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def join(unit: list[Rows]) -> Rows:
    """Joins neighbouring pieces."""
    first, last = unit[0], unit[-1]
    if isinstance(first, slice) and isinstance(last, slice):
        return slice(first.start, last.stop)
    return torch.cat([piece for piece in unit if isinstance(piece, Tensor)])


def _even(start: int, end: int, chunk_tokens: int) -> list[Rows]:
    """Cuts start..end into the fewest pieces, all of about the same size.

    A small last piece would cost as much dW traffic as a full one.
    """
    pieces = max(1, -(-(end - start) // chunk_tokens))
    edges = [start + (end - start) * k // pieces for k in range(pieces + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _runs(sequence_ids: Tensor) -> tuple[Tensor | None, list[int]]:
    """Returns the order that makes each sequence's rows neighbours, and the sequences' lengths.

    The order is None where the rows are neighbours already.
    """
    ids, lengths = torch.unique_consecutive(sequence_ids, return_counts=True)
    if len(ids.unique()) == len(ids):
        return None, lengths.tolist()
    order = sequence_ids.argsort(stable=True)
    return order, torch.unique_consecutive(sequence_ids[order], return_counts=True)[1].tolist()
