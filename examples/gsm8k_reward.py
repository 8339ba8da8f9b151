"""A reward for GSM8K and similar data: the last number of the completion against the one after "####".

    grpokit train --reward_funcs examples/gsm8k_reward.py:accuracy --dataset train.jsonl ...

The dataset has GSM8K's columns: `question`, and `answer` with a worked solution that ends in "#### 42".
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

# 42, -3, 1,234.50, .5; the minus of "7-4" is a subtraction, not a sign.
NUMBER = re.compile(r"(?:(?<![0-9])-)?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")


def accuracy(
    completions: list[str] | list[list[dict[str, Any]]], answer: list[str], **kwargs: Any
) -> list[float]:
    """1.0 where the last number of a completion equals the reference's, else 0.0.

    Numbers are compared by value: "1,234.0" equals "1234".

    Args:
        completions: texts, or lists of messages as TRL passes them (the last one's content counts).
        answer: the dataset's column.

    Returns:
        One score per completion.

    Raises:
        ValueError: a reference has no number after "####".
    """
    return [
        float(last_number(text_of(completion)) == reference_number(reference))
        for completion, reference in zip(completions, answer, strict=True)
    ]


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """Returns the text of a completion, which is a text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""


def last_number(text: str) -> Decimal | None:
    """Returns the last number in `text`, or None."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def reference_number(answer: str) -> Decimal:
    """Returns the number after "####" in a reference solution."""
    found = NUMBER.search(answer.partition("####")[2])
    if found is None:
        raise ValueError(f'reference {answer[-60:]!r}: expected a solution that ends in "#### 42"')
    return Decimal(found[0].replace(",", ""))
