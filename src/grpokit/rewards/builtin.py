"""The rewards that need no package: `exact_match`, `format`, `format_tags`, `boxed`, `length`, `soft_overlong`, `repetition`.

Each is an ordinary reward function. A `*_reward` maker binds a run's options to it, where it has any. Completions are
texts, or chats whose last message is the completion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

from ..common.text import did_you_mean

RewardFunction = Callable[..., Any]  # f(completions, **columns) → one number or None per completion

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")


# --------------------------------------------------------------------------- of the answer


def exact_match(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
    """1.0 where the completion equals a reference answer, else 0.0. White space at the ends is ignored.

    Args:
        completions: texts or chats.
        answer: for each completion its reference: text; a number (`3`, `3.0` and `Decimal("3.00")` are `"3"`); a list of
            these, any of which is right; None: does not apply.

    Raises:
        TypeError: a reference of another type, which no text would ever match.

    Example:
        >>> exact_match(["4", "5", "five"], ["4", 4.0, ["5", "five"]])
        [1.0, 0.0, 1.0]
    """
    scores: list[float | None] = []
    for reference, completion in zip(answer, completions, strict=True):
        references, text = reference_list(reference), text_of(completion).strip()
        forms = {form for one in references for form in reference_forms(one)}
        scores.append(float(text in forms) if references else None)
    return scores


def reference_list(reference: Any) -> list[Any]:
    """Returns the references of a row: those of a list that are not null, or the only one. None: there are none."""
    if hasattr(reference, "tolist"):  # an array or a number of numpy
        reference = reference.tolist()
    listed = reference if isinstance(reference, list | tuple | set | frozenset) else [reference]
    return [one.item() if hasattr(one, "item") else one for one in listed if one is not None]


def reference_forms(reference: Any) -> set[str]:
    """Returns the texts that state a reference: a whole float or Decimal may be written with its point or without."""
    text = reference_text(reference).strip()
    return {text, str(reference)} if isinstance(reference, float | Decimal) else {text}


def reference_text(reference: Any) -> str:
    """Returns a reference answer as text. Raises TypeError for anything but text or a number.

    Example:
        >>> reference_text(12226.0), reference_text(0.5)
        ('12226', '0.5')
    """
    if isinstance(reference, float | Decimal) and math.isfinite(reference) and reference == int(reference):
        return str(int(reference))
    if not isinstance(reference, str | int | float | Decimal):
        kind = type(reference).__name__
        raise TypeError(
            f"the reference {reference!r} is a {kind}; expected text, a number, or a list of these"
        )
    return str(reference)


def exact_match_reward(answer_column: str, columns: Collection[str]) -> RewardFunction:
    """Makes `exact_match` with the column of `find_answer_column`. Raises ValueError if there is none."""
    column = find_answer_column(answer_column, columns, "exact_match")
    return lambda completions, **columns: exact_match(completions, columns[column])


def find_answer_column(answer_column: str, columns: Collection[str], spec: str) -> str:
    """Returns `answer_column`; if it is empty, the first of ANSWER_COLUMNS that is in `columns`.

    Args:
        answer_column: the value of --answer_column.
        columns: the dataset's columns.
        spec: the reward, for the message.

    Raises:
        ValueError: there is no such column. The message names the flag and the columns that exist.
    """
    has = f"the dataset has {', '.join(sorted(columns)) or 'no columns beside the prompt'}"
    if answer_column and answer_column not in columns:
        near = did_you_mean(answer_column, columns)
        raise ValueError(f"--answer_column {answer_column}: no such column{near}; {has}")
    column = answer_column or next((name for name in ANSWER_COLUMNS if name in columns), "")
    if not column:
        raise ValueError(
            f"--reward_funcs {spec}: no column {', '.join(ANSWER_COLUMNS)}; name yours by --answer_column; {has}"
        )
    return column


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """Returns the text of a completion as reward functions get it: the text itself, or what the model said last.

    Example:
        >>> text_of([{"role": "assistant", "content": "7"}, {"role": "tool", "content": "ok"}])
        '7'
    """
    if isinstance(completion, str):
        return completion
    said = [message.get("content") for message in completion if message["role"] == "assistant"]
    return (said or [""])[-1] or ""


# --------------------------------------------------------------------------- of the form


def format_match(completions: Sequence[Any], pattern: re.Pattern[str]) -> list[float]:
    """1.0 where the completion contains a match of `pattern`, else 0.0."""
    return [float(pattern.search(text_of(completion)) is not None) for completion in completions]


def format_reward(pattern: str) -> RewardFunction:
    """Makes `format_match` for a regular expression in which `.` matches newlines.

    Raises:
        ValueError: it is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"--format_pattern {pattern!r}: not a regular expression: {error}") from error
    return lambda completions: format_match(completions, compiled)


def format_tags(completions: Sequence[Any]) -> list[float]:
    """1.0 for `<think>...</think><answer>...</answer>`: each tag once, both filled, only white space outside."""
    return [float(_has_tags(text_of(completion).strip())) for completion in completions]


def _has_tags(text: str) -> bool:
    """Counts and cuts, because a long text could make a regular expression slow."""
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(text.count(tag) != 1 for tag in tags):
        return False
    before, _, rest = text.partition(tags[0])
    thought, _, rest = rest.partition(tags[1])
    between, _, rest = rest.partition(tags[2])
    answer, closed, after = rest.partition(tags[3])
    filled = thought.strip() and answer.strip()
    return bool(closed and filled) and not (before + between + after).strip()


def boxed(completions: Sequence[Any]) -> list[float]:
    r"""1.0 where the completion's last `\boxed{...}` is closed and not empty, else 0.0."""
    return [float(bool(last_boxed(text_of(completion)).strip())) for completion in completions]


def last_boxed(text: str) -> str:
    r"""Returns the content of the last `\boxed{...}`, up to its own closing brace; "" where there is none."""
    begin = text.rfind(r"\boxed{")
    if begin < 0:
        return ""
    begin += len(r"\boxed{")
    depth = 1
    for found in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):  # \{ is not a brace
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[begin : begin + found.start()]
    return ""


# --------------------------------------------------------------------------- of the length


def shortness(completion_ids: Sequence[Sequence[int]], max_completion_length: int) -> list[float]:
    """1 − T / max_completion_length for a completion of T tokens: 0 at the limit, nearer to 1 for shorter ones.

    This is a soft cost of length. Give it a small weight next to a reward for being right: alone, it is highest for an empty
    completion.
    """
    return [1.0 - len(ids) / max_completion_length for ids in completion_ids]


def length_reward(max_completion_length: int) -> RewardFunction:
    """Makes `shortness` for completions of at most `max_completion_length` tokens."""
    return lambda completion_ids: shortness(completion_ids, max_completion_length)


def soft_overlong(completion_ids: Sequence[Sequence[int]], longest: int, cache: int) -> list[float]:
    """0 up to `longest` − `cache` tokens, then falling linearly to −1 at `longest`, and −1 beyond.

    R(T) = 0 for T ≤ L_max − L_cache; (L_max − L_cache − T) / L_cache up to L_max; −1 beyond.
    DAPO, arXiv:2503.14476, equation 13.
    """
    return [max(-1.0, min(0.0, (longest - cache - len(ids)) / cache)) for ids in completion_ids]


def soft_overlong_reward(max_completion_length: int, soft_cache_length: int | None) -> RewardFunction:
    """Makes `soft_overlong`. Without a cache length it is a fifth of the limit, as in DAPO's experiments (4,096 of 20,480).

    Raises:
        ValueError: --soft_cache_length is not between 1 and the limit.
    """
    cache = max(1, max_completion_length // 5) if soft_cache_length is None else soft_cache_length
    if not 1 <= cache <= max_completion_length:
        raise ValueError(
            f"--soft_cache_length {cache}: must be between 1 and --max_completion_length {max_completion_length}"
        )
    return lambda completion_ids: soft_overlong(completion_ids, max_completion_length, cache)


# --------------------------------------------------------------------------- of repetition


def repetition(completion_ids: Sequence[Sequence[int]], n: int, max_penalty: float) -> list[float]:
    """(1 − unique / total) · `max_penalty` over the completion's n-grams of tokens; 0 with fewer than `n` tokens.

    arXiv:2502.03373, appendix C.2. It counts tokens, as the paper and TRL do. ms-swift and Open-R1 split at white space, which
    finds no words in Chinese, and one word in an endless number.
    """
    return [_repeated_share(ids, n) * max_penalty for ids in completion_ids]


def _repeated_share(ids: Sequence[int], n: int) -> float:
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition_reward(n_grams: int, max_penalty: float) -> RewardFunction:
    """Makes `repetition`.

    Raises:
        ValueError: --repetition_n_grams is below 1, or --repetition_max_penalty above 0.
    """
    if n_grams < 1:
        raise ValueError(f"--repetition_n_grams {n_grams}: must be at least 1 (3 is usual)")
    if not -float("inf") < max_penalty <= 0:
        raise ValueError(
            f"--repetition_max_penalty {max_penalty}: is what a completion of nothing but repetition gets, so it must be "
            "0 or less (-1 is usual)"
        )
    return lambda completion_ids: repetition(completion_ids, n_grams, max_penalty)
