"""Reductions: lengths and counts → the weight w_i of each token of sequence i (docs/en/losses/index.md).

The weights are fixed once for a whole update, before it is cut into micro-batches or ranks. The loss is Σ w_i·ℓ over
tokens, so every slice adds its share and no cut can change the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .loss import Loss


@dataclass(frozen=True)
class Counts:
    """The numbers that a reduction may divide by. `a + b` joins slices of one rank; `across_ranks` joins ranks, once.

    Example:
        >>> one, two = Counts.of(torch.tensor([3, 5])), Counts.of(torch.tensor([2]))
        >>> Counts.across_ranks([one, two])[0].tokens
        10
    """

    sequences: int  # N, the sequences with at least one trainable token, over all ranks
    tokens: int  # trainable tokens over all ranks
    rank_tokens: int  # trainable tokens of this rank
    ranks: int = 1  # P, including ranks without a token
    # The trainable tokens of each group that has any.
    group_tokens: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Tensor, group_ids: Tensor | None = None) -> Counts:
        """Counts one slice.

        Args:
            lengths: [S] trainable tokens of each sequence.
            group_ids: [S] group of each sequence; only `prompt_mean` needs it.

        Raises:
            ValueError: the shapes differ.
        """
        if lengths.ndim != 1 or (group_ids is not None and group_ids.shape != lengths.shape):
            shapes = f"lengths {list(lengths.shape)}" + (
                f", group_ids {list(group_ids.shape)}" if group_ids is not None else ""
            )
            raise ValueError(f"Counts.of takes lengths [S] and group_ids [S] or None; got {shapes}")
        tokens = int(lengths.sum())
        groups: dict[int, int] = {}
        if group_ids is not None:
            for group, length in zip(group_ids.tolist(), lengths.tolist(), strict=True):
                if length:
                    groups[group] = groups.get(group, 0) + length
        return cls(int((lengths > 0).sum()), tokens, tokens, 1, groups)

    def __add__(self, other: Counts) -> Counts:
        if self.ranks != 1 or other.ranks != 1:
            raise ValueError("Counts are joined across ranks already; add the slices of a rank first")
        return Counts._sum([self, other])

    @classmethod
    def across_ranks(cls, per_rank: Sequence[Counts]) -> list[Counts]:
        """Turns one Counts per rank into the list with totals over all ranks. Each keeps its own `rank_tokens`."""
        total = cls._sum(per_rank)
        return [
            cls(total.sequences, total.tokens, own.rank_tokens, len(per_rank), total.group_tokens)
            for own in per_rank
        ]

    @classmethod
    def _sum(cls, parts: Sequence[Counts]) -> Counts:
        groups: dict[int, int] = {}
        for part in parts:
            for group, tokens in part.group_tokens.items():
                groups[group] = groups.get(group, 0) + tokens
        return cls(
            sum(p.sequences for p in parts),
            sum(p.tokens for p in parts),
            sum(p.rank_tokens for p in parts),
            1,
            groups,
        )


@dataclass(frozen=True)
class Sequences:
    """The sequences that a reduction weighs. Example: `Sequences(torch.tensor([2.0, 4.0]))`"""

    lengths: Tensor  # [S] float64, T_i, all above 0
    group_ids: Tensor | None = None  # [S], for prompt_mean
    max_length: int | None = None  # L_max, for constant_length


# Every reduction below takes the sequences and the counts of the whole update, and returns w [S].


def sequence_mean(sequences: Sequences, counts: Counts) -> Tensor:
    """w_i = 1 / (N · T_i): the mean over each sequence's tokens, then over sequences."""
    return 1 / (counts.sequences * sequences.lengths)


def rank_token_mean(sequences: Sequences, counts: Counts) -> Tensor:
    """w_i = 1 / (P · tokens of this rank): the token mean of each rank, then the mean over ranks."""
    return torch.full_like(sequences.lengths, 1 / (counts.ranks * counts.rank_tokens))


def token_mean(sequences: Sequences, counts: Counts) -> Tensor:
    """w_i = 1 / (tokens of all ranks): one mean over all tokens of the update."""
    return torch.full_like(sequences.lengths, 1 / counts.tokens)


def constant_length(sequences: Sequences, counts: Counts) -> Tensor:
    """w_i = 1 / (N · L_max). L_max is the configured maximum completion length, never the padded width."""
    if sequences.max_length is None:
        raise ValueError("max_completion_length is missing: reduction constant_length divides by it")
    return torch.full_like(sequences.lengths, 1 / (counts.sequences * sequences.max_length))


def sequence_sum(sequences: Sequences, counts: Counts) -> Tensor:
    """w_i = 1 / N: the sum over each sequence's tokens, then the mean over sequences."""
    return torch.full_like(sequences.lengths, 1 / counts.sequences)


def prompt_mean(sequences: Sequences, counts: Counts) -> Tensor:
    """w_i = 1 / (Q · tokens of i's group): the token mean of each group, then the mean over the Q groups."""
    if sequences.group_ids is None or not counts.group_tokens:
        raise ValueError(
            "reduction prompt_mean needs group_ids: pass them to Counts.of and to sequence_weights"
        )
    lengths, groups = sequences.lengths, sequences.group_ids.tolist()
    tokens = torch.tensor([counts.group_tokens.get(g, 1) for g in groups], dtype=lengths.dtype)
    return 1 / (len(counts.group_tokens) * tokens.to(lengths.device))


Reduction = Callable[[Sequences, Counts], Tensor]

REDUCTIONS: dict[str, Reduction] = {
    "sequence_mean": sequence_mean,
    "rank_token_mean": rank_token_mean,
    "token_mean": token_mean,
    "constant_length": constant_length,
    "sequence_sum": sequence_sum,
    "prompt_mean": prompt_mean,
}

REDUCTION_FORMULAS: dict[str, str] = {
    "sequence_mean": r"w_i = \frac{1}{N\,T_i}",
    "rank_token_mean": r"w_i = \frac{1}{P\,\sum_{j\in\mathrm{rank}} T_j}",
    "token_mean": r"w_i = \frac{1}{\sum_j T_j}",
    "constant_length": r"w_i = \frac{1}{N\,L_{\mathrm{max}}}",
    "sequence_sum": r"w_i = \frac{1}{N}",
    "prompt_mean": r"w_i = \frac{1}{Q\,\sum_{j\in\mathrm{group}(i)} T_j}",
}


def sequence_weights(loss: Loss, lengths: Tensor, counts: Counts, group_ids: Tensor | None = None) -> Tensor:
    """Computes the weight of each sequence's tokens, for the whole update.

    Args:
        loss: names the reduction.
        lengths: [S] T_i, the trainable tokens of the whole sequences.
        counts: the counts of the whole update, after `Counts.across_ranks`.
        group_ids: [S] group of each sequence, for `prompt_mean`.

    Returns:
        w [S] float64; 0 for a sequence without trainable tokens.

    Raises:
        ValueError: `counts` has too few tokens, or the reduction lacks max_completion_length or group_ids.

    Example:
        >>> from grpokit.losses import make_loss
        >>> lengths = torch.tensor([2, 0, 4])
        >>> sequence_weights(make_loss("grpo"), lengths, Counts.of(lengths))
        tensor([0.2500, 0.0000, 0.1250], dtype=torch.float64)
    """
    if counts.tokens < int(lengths.sum()):
        raise ValueError(
            f"counts has {counts.tokens} tokens, but these sequences alone have {int(lengths.sum())}: "
            "counts must be of the whole update, before it is cut"
        )
    if loss.reduction == "constant_length" and loss.max_completion_length is None:
        raise ValueError(
            f"max_completion_length is missing: loss_type {loss.name} divides by it (reduction constant_length); "
            f"make_loss({loss.name!r}, max_completion_length=256)"
        )
    weights = torch.zeros(len(lengths), dtype=torch.float64, device=lengths.device)
    # A sequence without a trainable token is not a sample: its weight is 0, and it is not counted.
    real = lengths > 0
    if real.any():
        ids = None if group_ids is None else group_ids[real]
        sequences = Sequences(lengths[real].double(), ids, loss.max_completion_length)
        weights[real] = REDUCTIONS[loss.reduction](sequences, counts)
    return weights
