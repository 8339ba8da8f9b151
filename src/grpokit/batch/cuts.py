"""Deals an update's samples to the ranks and cuts each share into forwards by token budget. Pure functions, no tensors.

Nothing here changes a result. Every rank computes the cut of all ranks, so no rank has to tell another what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..types import Layout, Sample

T = TypeVar("T")

Sharing = Literal["never", "auto", "always"]

# The cost of a forward and its backward, in tokens, for choosing between layouts. benchmarks/prefix.py measured them; the
# table is in docs/en/scaling.md. A pass costs about 50 tokens of a model of 5 million parameters, and 150 to 300 tokens of
# one of 76 thousand.

# Sample length at which causal attention costs as much as everything else.
ATTENTION = 8192
# With an explicit mask, a query-key pair costs about 3x as much as in unmasked causal attention, counted over all L^2 pairs.
MASKED = 3
PASS = 192  # cost of one pass through the layers, in tokens, however many tokens it has
# Prompts are shared if that costs at most this part of the other layout's cost: the estimates err by about 10%.
WORTH = 0.9
# The first completion of a prompt pays for the prompt's tokens in full. Each further one keeps a copy of its keys and
# values, about 1 / COPY of the memory that the backward keeps for a token.
COPY = 8


def work(sample: Sample) -> float:
    """Estimates the cost of a sample's forward and backward, in tokens. Attention's square equals the rest at 8,192 tokens."""
    return sample.num_tokens * (1 + sample.num_tokens / ATTENTION)


def deal(samples: Iterable[Sample], ranks: int) -> list[list[Sample]]:
    """Deals samples to ranks with about equal work.

    The most expensive samples go first, each to the rank with the least work so far.

    Args:
        samples: the samples of one update.
        ranks: the number of ranks.

    Returns:
        The samples of each rank.
    """
    return _deal(sorted(samples, key=lambda sample: (-work(sample), sample.index)), ranks, work)


def _deal(items: Iterable[T], ranks: int, cost: Callable[[T], float]) -> list[list[T]]:
    shares: list[list[T]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for item in items:
        rank = loads.index(min(loads))
        shares[rank].append(item)
        loads[rank] += cost(item)
    return shares


# --------------------------------------------------------------------------- cuts


@dataclass(frozen=True)
class Cut:
    """The samples of each forward of each rank. All ranks have the same number of forwards."""

    layout: Layout
    parts: list[list[list[Sample]]]

    @property
    def loads(self) -> list[float]:
        """The cost of each rank's forwards, padding included."""
        return [sum(COST[self.layout](part) for part in parts) for parts in self.parts]

    @property
    def imbalance(self) -> float:
        """The busiest rank's work divided by the mean; 1 where all have the same and none waits."""
        loads = self.loads
        return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0


def cut_samples(
    samples: Iterable[Sample], budget: int, *, packed: bool = False, share: Sharing = "never", ranks: int = 1
) -> Cut:
    """Cuts samples into forwards of at most `budget` tokens, padding included. A longer sample goes alone.

    Args:
        samples: the samples of one update.
        budget: the most tokens of a forward.
        packed: whether the layout is `packed` instead of `padded`, where prompts are not shared.
        share: `always` or `never` share prompts, or `auto`: share where that is estimated to be cheaper for the busiest
            rank. The choice is for all samples, because every forward is a collective of all ranks.
        ranks: the number of ranks.

    Returns:
        The cut of all ranks.
    """
    samples = list(samples)
    if share == "always":
        return _shared(samples, budget, ranks)
    parts = [_in_order(of_rank, budget, packed) for of_rank in deal(samples, ranks)]
    whole = Cut("packed" if packed else "padded", _evened(parts))
    if share == "never":
        return whole
    shared = _shared(samples, budget, ranks)
    return shared if _busiest(shared) < WORTH * _busiest(whole) else whole


def _busiest(cut: Cut) -> float:
    return max(cut.loads)


def _evened(cuts: list[list[list[Sample]]]) -> list[list[list[Sample]]]:
    """Gives every rank the same number of forwards.

    A rank with too few splits its largest forward, or gets empty ones.
    """
    wanted = max(len(parts) for parts in cuts)
    return [_split_to(parts, wanted) for parts in cuts]


def _split_to(parts: list[list[Sample]], count: int) -> list[list[Sample]]:
    """`count` forwards with the samples of `parts`: each time the first of the largest is halved."""
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]), default=-1)
        if largest < 0 or len(parts[largest]) < 2:
            return parts + [[] for _ in range(count - len(parts))]
        part = parts[largest]
        half = len(part) // 2
        parts = [*parts[:largest], *parts[largest + 1 :], part[:half], part[half:]]
    return parts


def _in_order(samples: Iterable[Sample], budget: int, packed: bool) -> list[list[Sample]]:
    parts: list[list[Sample]] = []
    tokens = 0
    # Each new sample is the longest of its micro-batch.
    for sample in sorted(samples, key=lambda sample: sample.num_tokens):
        tokens = (
            tokens + sample.num_tokens if packed else (len(parts[-1]) + 1 if parts else 1) * sample.num_tokens
        )
        if not parts or tokens > budget:
            parts.append([])
            tokens = sample.num_tokens
        parts[-1].append(sample)
    return parts


# --------------------------------------------------------------------------- shared prompts


@dataclass(frozen=True)
class Piece:
    """Samples that go into one forward with shared prompts, and the room that they take."""

    samples: tuple[Sample, ...]
    prompts: int
    prompt_tokens: int  # tokens of the longest prompt
    tokens: int  # input tokens of the longest completion, without its last token, which predicts nothing

    @staticmethod
    def of(samples: Sequence[Sample]) -> Piece:
        """Makes a piece of samples of one prompt."""
        longest = max(len(sample.completion_ids) for sample in samples)
        return Piece(tuple(samples), 1, len(samples[0].prompt_ids), max(1, longest - 1))

    def beside(self, other: Piece) -> Piece:
        """Joins two pieces for one forward. Neighbours with the same prompt share it."""
        again = bool(self.samples) and self.samples[-1].origin == other.samples[0].origin
        return Piece(
            self.samples + other.samples,
            self.prompts + other.prompts - again,
            max(self.prompt_tokens, other.prompt_tokens),
            max(self.tokens, other.tokens),
        )

    @property
    def room(self) -> int:
        """The tokens that it takes of a budget."""
        inputs = self.prompts * self.prompt_tokens + len(self.samples) * self.tokens
        return inputs + (len(self.samples) - self.prompts) * self.prompt_tokens // COPY

    @property
    def cost(self) -> float:
        """The cost in tokens, without that of the passes themselves."""
        prompts = self.prompts * self.prompt_tokens * (1 + self.prompt_tokens / ATTENTION)
        reach = self.prompt_tokens + self.tokens
        return prompts + len(self.samples) * self.tokens * (1 + MASKED * reach / ATTENTION)


def _shared(samples: Sequence[Sample], budget: int, ranks: int) -> Cut:
    """Cuts samples whose prompts are shared.

    Whole groups save the most. Parts of groups, sorted by length, have less padding and balance the ranks better. So groups
    are halved as long as that makes the busiest rank faster.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (len(sample.completion_ids), sample.index)):
        groups.setdefault(sample.origin, []).append(sample)
    largest, count, best = max((len(group) for group in groups.values()), default=1), 1, None
    while count < 2 * largest:
        pieces = [
            Piece.of(part)
            for group in groups.values()
            for piece in _equal_parts(group, count)
            for part in _within(piece, budget)
        ]
        dealt = _deal(sorted(pieces, key=lambda p: (-p.cost, p.samples[0].index)), ranks, lambda p: p.cost)
        found = min(
            (_in_forwards(dealt, order, budget) for order in (_by_prompt, _by_completion)), key=_busiest
        )
        if best is not None and _busiest(found) >= _busiest(best):
            break
        best, count = found, 2 * count
    assert best is not None
    return best


def _in_forwards(dealt: list[list[Piece]], order: Callable[[Piece], tuple[int, ...]], budget: int) -> Cut:
    return Cut("shared", _evened([_side_by_side(sorted(share, key=order), budget) for share in dealt]))


def _by_prompt(piece: Piece) -> tuple[int, ...]:
    return piece.prompt_tokens, piece.tokens, piece.samples[0].index


def _by_completion(piece: Piece) -> tuple[int, ...]:
    return piece.tokens, piece.prompt_tokens, piece.samples[0].index


def _equal_parts(samples: Sequence[Sample], count: int) -> list[Sequence[Sample]]:
    size = -(-len(samples) // count)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _within(samples: Sequence[Sample], budget: int) -> list[Sequence[Sample]]:
    """Splits samples of one prompt into the fewest equal parts that fit the budget."""
    for count in range(1, len(samples)):
        parts = _equal_parts(samples, count)
        if all(Piece.of(part).room <= budget for part in parts):
            return parts
    return _equal_parts(samples, len(samples))


def _side_by_side(pieces: Iterable[Piece], budget: int) -> list[list[Sample]]:
    parts: list[Piece] = []
    for piece in pieces:
        joined = parts[-1].beside(piece) if parts else piece
        if not parts or joined.room > budget:
            parts.append(piece)
        else:
            parts[-1] = joined
    return [list(part.samples) for part in parts]


# --------------------------------------------------------------------------- what a layout costs


def _padded_cost(samples: Sequence[Sample]) -> float:
    return PASS + len(samples) * max(map(work, samples), default=0.0)


def _packed_cost(samples: Sequence[Sample]) -> float:
    """Assumes a kernel that keeps samples apart without a mask."""
    return PASS + sum(map(work, samples))


def _shared_cost(samples: Sequence[Sample]) -> float:
    groups: dict[tuple[int, tuple[int, ...]], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.origin, []).append(sample)
    whole = Piece((), 0, 0, 0)
    for group in groups.values():
        whole = whole.beside(Piece.of(group))
    return 2 * PASS + whole.cost


COST: dict[Layout, Callable[[Sequence[Sample]], float]] = {
    "padded": _padded_cost,
    "packed": _packed_cost,
    "shared": _shared_cost,
}
