"""The rewards that need no code: `exact_match`, `format` and `length`.

Each is an ordinary reward function, fixed to a run's options by a `*_reward` maker; `completions` are texts, or
chats whose last message is the completion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from grpokit.overlay import did_you_mean

RewardFunction = Callable[..., Any]  # f(completions, **columns) -> one number or None for each completion

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")


def exact_match(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
    """1.0 where the completion is the reference answer, 0.0 where it isn't; white space at the ends is ignored.

    `answer`: one reference for each completion, text or a number (`3` is `"3"`); None: doesn't apply.

    Raises TypeError for any other reference, which no text would ever match.
    """
    return [
        _matches(text_of(completion), reference)
        for completion, reference in zip(completions, answer, strict=True)
    ]


def format_match(completions: Sequence[Any], pattern: re.Pattern[str]) -> list[float]:
    """1.0 where `pattern` is found in the completion, else 0.0."""
    return [float(pattern.search(text_of(completion)) is not None) for completion in completions]


def shortness(completion_ids: Sequence[Sequence[int]], max_completion_length: int) -> list[float]:
    """1 - T / max_completion_length for a completion of T tokens: 0 at the limit, nearer to 1 the shorter it is.

    A soft cost of length, best given a small weight beside a reward for being right: alone it's highest for
    saying nothing.
    """
    return [1.0 - len(ids) / max_completion_length for ids in completion_ids]


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of a completion as reward functions get it: itself, or the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def exact_match_reward(answer_column: str, columns: Collection[str]) -> RewardFunction:
    """`exact_match` against `answer_column`, or if that's empty the first of ANSWER_COLUMNS in `columns`.

    Raises ValueError naming --answer_column and the columns that exist if there's no such column.
    """
    has = f"the dataset has {', '.join(sorted(columns)) or 'no columns beside the prompt'}"
    if answer_column and answer_column not in columns:
        near = did_you_mean(answer_column, columns)
        raise ValueError(f"--answer_column {answer_column}: no such column{near}; {has}")
    column = answer_column or next((name for name in ANSWER_COLUMNS if name in columns), "")
    if not column:
        raise ValueError(
            f"--reward_funcs exact_match: no column {', '.join(ANSWER_COLUMNS)}; name yours by --answer_column; {has}"
        )
    return lambda completions, **columns: exact_match(completions, columns[column])


def format_reward(pattern: str) -> RewardFunction:
    """`format_match` for a regular expression in which `.` matches newlines. Raises ValueError if it's not one."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"--format_pattern {pattern!r}: not a regular expression: {error}") from error
    return lambda completions: format_match(completions, compiled)


def length_reward(max_completion_length: int) -> RewardFunction:
    """`shortness` for completions of at most `max_completion_length` tokens."""
    return lambda completion_ids: shortness(completion_ids, max_completion_length)


def _matches(text: str, reference: Any) -> float | None:
    if reference is None:
        return None
    if not isinstance(reference, str | int | float):
        kind = type(reference).__name__
        raise TypeError(
            f"the reference {reference!r} is a {kind}; exact_match compares with text or a number"
        )
    return float(text.strip() == str(reference).strip())
