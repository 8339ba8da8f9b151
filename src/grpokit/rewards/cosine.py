"""The `cosine` reward: scores a completion by its correctness and its length."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from ..config.options import ModelConfig
from .accuracy import accuracy_reward
from .builtin import RewardFunction


def cosine(length: int, longest: int, shortest_value: float, longest_value: float) -> float:
    """Goes from `shortest_value` at no tokens to `longest_value` at `longest`, along half a cosine.

    v_L + (v_0 − v_L)·(1 + cos(π·t/L))/2 with t = min(length, L): arXiv 2502.03373.

    Args:
        length: tokens of the completion.
        longest: L.
        shortest_value: v_0.
        longest_value: v_L.

    Returns:
        The value.

    Example:
        >>> [cosine(t, 10, 1.0, 0.5) for t in (0, 5, 10, 20)]
        [1.0, 0.75, 0.5, 0.5]
    """
    t = min(length, longest) / longest
    return longest_value + (shortest_value - longest_value) * (1 + math.cos(math.pi * t)) / 2


def cosine_reward(config: ModelConfig, columns: Collection[str]) -> RewardFunction:
    """Makes the reward: `cosine` of the completion's length, with the values for right or for wrong completions.

    `accuracy` tells which are right. Where it returns None, so does the reward.

    Raises:
        ValueError: as `accuracy_reward` does.
    """
    accuracy = accuracy_reward(config.answer_column, columns, "cosine")
    longest = config.max_completion_length if config.cosine_max_len is None else config.cosine_max_len
    values = {
        True: (config.cosine_min_len_value_correct, config.cosine_max_len_value_correct),
        False: (config.cosine_min_len_value_wrong, config.cosine_max_len_value_wrong),
    }

    def reward(
        completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **others: Sequence[Any]
    ) -> list[float | None]:
        right = accuracy(completions=completions, **others)
        return [
            None if score is None else cosine(len(ids), longest, *values[score >= 1])
            for score, ids in zip(right, completion_ids, strict=True)
        ]

    return reward
