"""Majority votes: maj@k, the chance that the most common answer among k samples is right (arXiv 2203.11171)."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Sequence

from ..rewards.builtin import last_boxed

MOST_SUBSETS = 5000  # the most subsets of n samples to average over; if there are more, this many are drawn
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
RIGHT = (
    object()
)  # the vote of every completion that passed: right answers are equal, however they are written


def vote_of(text: str) -> str:
    r"""Returns the answer that a completion votes for: its last `\boxed{}`, else its last number, else its text.

    Example:
        >>> vote_of(r"so it is \boxed{ 12 }"), vote_of("3 and 4 make 7."), vote_of(" yes ")
        ('12', '7', 'yes')
    """
    boxed = last_boxed(text)
    if boxed.strip():
        return "".join(boxed.split())
    numbers = NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else text.strip()


def majority(passed: Sequence[bool], votes: Sequence[str]) -> float:
    """Returns the chance that the most common answer is right. Ties are broken at random.

    Args:
        passed: whether each sample is right.
        votes: the answer of each sample; those of right ones count as one answer.

    Example:
        >>> majority([True, True, False], ["1/2", "0.5", "3"]), majority([True, False], ["7", "8"])
        (1.0, 0.5)
    """
    counts = Counter(RIGHT if right else vote for right, vote in zip(passed, votes, strict=True))
    most = max(counts.values())
    return (counts[RIGHT] == most) / sum(count == most for count in counts.values())


def estimate_maj_at_k(passed: Sequence[bool], votes: Sequence[str], k: int) -> float:
    """Estimates maj@k from n samples of a prompt, without bias: the mean over all subsets of k samples.

    If there are more than 5,000 subsets, 5,000 are drawn, the same ones for every prompt.

    Args:
        passed: whether each of the n samples is right.
        votes: the answer of each of them.
        k: the number of votes.

    Raises:
        ValueError: k is not between 1 and n.
    """
    n = len(passed)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} needs between {k} and n samples of a prompt; there are {n}")
    if math.comb(n, k) <= MOST_SUBSETS:
        subsets = list(itertools.combinations(range(n), k))
    else:
        draw = random.Random(n * 1_000_003 + k)
        subsets = [tuple(draw.sample(range(n), k)) for _ in range(MOST_SUBSETS)]
    found = [majority([passed[i] for i in subset], [votes[i] for i in subset]) for subset in subsets]
    return sum(found) / len(found)
