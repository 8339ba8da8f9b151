"""The text of a completion, as rewards and logs see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def written_text(tokenizer: Any, ids: Sequence[int], eos_ids: Collection[int]) -> str:
    """Decodes a completion with every token that the model wrote, special tokens such as `<think>` included.

    Only the end-of-sequence token, what follows it, and padding at the end are cut.

    Args:
        tokenizer: the model's tokenizer.
        ids: the completion's tokens.
        eos_ids: the tokens that end a completion.

    Returns:
        The text.
    """
    end = next((place for place, token in enumerate(ids) if token in eos_ids), len(ids))
    while end and ids[end - 1] == tokenizer.pad_token_id:
        end -= 1
    return tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
