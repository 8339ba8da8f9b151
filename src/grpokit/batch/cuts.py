"""An update's samples → a share for each rank, cut into forwards by token budget. Pure functions of samples: no tensors.

Nothing here changes a result. Every rank computes the cut of all ranks, so none has to tell another what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..types import Layout, Sample

T = TypeVar("T")

Sharing = Literal["never", "auto", "always"]

# What a forward and its backward cost, in tokens, for choosing between layouts. Set by benchmarks/prefix.py, whose table is in
# docs/en/scaling.md: a pass costs some 50 tokens of a model of 5 million parameters and 150 to 300 of one of 76 thousand.
ATTENTION = (
    8192  # tokens of a sample where attention, which skips the upper half of the square, equals the rest
)
MASKED = 3  # of a pair of tokens under a mask, to one of that whole square
PASS = 192  # of going through the layers once, whatever the number of tokens
WORTH = 0.9  # what sharing must be estimated to cost of the other layout: the estimate errs by about as much
# What a budget counts for a prompt's token in each completion beside the first: its keys and values are kept for each of
# them. They are about an eighth of all that is kept of a token for the backward.
COPY = 8


def work(sample: Sample) -> float:
    """What a sample's forward and backward cost, in tokens: attention's square equals the rest at some 8,000 of them."""
    return sample.num_tokens * (1 + sample.num_tokens / ATTENTION)


def deal(samples: Iterable[Sample], ranks: int) -> list[list[Sample]]:
    """Samples → a share for each rank, of about equal work: the dearest first, each to the rank with the least so far."""
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
    """How samples are cut: for each rank its forwards, and the samples of each. All ranks have the same number of forwards."""

    layout: Layout
    parts: list[list[list[Sample]]]

    @property
    def loads(self) -> list[float]:
        """What each rank's forwards cost, padding included."""
        return [sum(COST[self.layout](part) for part in parts) for parts in self.parts]

    @property
    def imbalance(self) -> float:
        """The busiest rank's work over the mean: 1 where all have the same, so that none waits."""
        loads = self.loads
        return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0


def cut_samples(
    samples: Iterable[Sample], budget: int, *, packed: bool = False, share: Sharing = "never", ranks: int = 1
) -> Cut:
    """Samples in forwards of at most `budget` tokens, padding included; what is longer by itself goes alone.

    With `share` auto, prompts are shared where that is estimated to be cheaper for the busiest rank: for all of these
    samples or for none, because each forward is a meeting of all ranks.
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
    """The same number of forwards for each rank: one that has too few cuts the larger ones, or adds empty ones."""
    wanted = max(len(parts) for parts in cuts)
    for mine in cuts:
        while len(mine) < wanted:
            largest = max(range(len(mine)), key=lambda i: len(mine[i]), default=None)
            part = [] if largest is None or len(mine[largest]) < 2 else mine.pop(largest)
            mine += [part[: len(part) // 2], part[len(part) // 2 :]] if part else [[]]
    return cuts


def _in_order(samples: Iterable[Sample], budget: int, packed: bool) -> list[list[Sample]]:
    parts: list[list[Sample]] = []
    tokens = 0
    for sample in sorted(
        samples, key=lambda sample: sample.num_tokens
    ):  # each new sample is the longest of its micro-batch
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
    """Samples of one prompt that stay together, or several such side by side: what they take in one forward."""

    samples: tuple[Sample, ...]
    prompts: int
    prompt_tokens: int  # of the longest prompt
    tokens: int  # of the longest completion that go in: its last token predicts nothing

    @staticmethod
    def of(samples: Sequence[Sample]) -> Piece:
        """Samples of one prompt."""
        longest = max(len(sample.completion_ids) for sample in samples)
        return Piece(tuple(samples), 1, len(samples[0].prompt_ids), max(1, longest - 1))

    def beside(self, other: Piece) -> Piece:
        """Both in one forward. Neighbours of one prompt have it once."""
        again = bool(self.samples) and self.samples[-1].group == other.samples[0].group
        return Piece(
            self.samples + other.samples,
            self.prompts + other.prompts - again,
            max(self.prompt_tokens, other.prompt_tokens),
            max(self.tokens, other.tokens),
        )

    @property
    def room(self) -> int:
        """What it takes of a budget."""
        inputs = self.prompts * self.prompt_tokens + len(self.samples) * self.tokens
        return inputs + (len(self.samples) - self.prompts) * self.prompt_tokens // COPY

    @property
    def cost(self) -> float:
        """What it costs, but for the passes themselves."""
        prompts = self.prompts * self.prompt_tokens * (1 + self.prompt_tokens / ATTENTION)
        reach = self.prompt_tokens + self.tokens
        return prompts + len(self.samples) * self.tokens * (1 + MASKED * reach / ATTENTION)


def _shared(samples: Sequence[Sample], budget: int, ranks: int) -> Cut:
    """Samples whose prompts are shared. Whole groups save the most; pieces of them, sorted by length, have less padding and
    balance the ranks better: so they are halved as long as the busiest rank gains by it.
    """
    groups: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (len(sample.completion_ids), sample.index)):
        groups.setdefault(sample.group, []).append(sample)
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
    """Samples of one prompt in as few equal parts as the budget allows."""
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


def _packed_cost(samples: Sequence[Sample]) -> float:  # with a kernel that keeps samples apart without a mask
    return PASS + sum(map(work, samples))


def _shared_cost(samples: Sequence[Sample]) -> float:
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    whole = Piece((), 0, 0, 0)
    for group in groups.values():
        whole = whole.beside(Piece.of(group))
    return 2 * PASS + whole.cost


COST: dict[Layout, Callable[[Sequence[Sample]], float]] = {
    "padded": _padded_cost,
    "packed": _packed_cost,
    "shared": _shared_cost,
}
