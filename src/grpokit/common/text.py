"""Text for messages: the nearest known word, one line of a long text, and names that several rooms know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

FROM_PYTHON = "python:"  # begins the name, in a configuration, of something that was given as an object
# The rewards that are built in, by the names that --reward_funcs takes. They are here, where no torch is imported.
BUILT_IN_REWARDS = (
    "exact_match",
    "format",
    "length",
    "accuracy",
    "format_tags",
    "boxed",
    "soft_overlong",
    "repetition",
    "cosine",
    "judge",
)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the nearest known word, or an empty string.

    Example:
        >>> did_you_mean("dappo", ["dapo", "grpo"])
        " (did you mean 'dapo'?)"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_line(text: object, limit: int = 300) -> str:
    """Replaces runs of white space by one space, and cuts the text after `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def count(number: int, noun: str) -> str:
    """Returns a number with its noun.

    Example:
        >>> count(1, "seed"), count(1200, "run")
        ('1 seed', '1,200 runs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, with the next one where it ends in a colon, or else its type's name."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """Returns the value of `flag` in `--flag value` or `--flag=value`, or an empty string.

    Example:
        >>> value_of("--config", ["--seed", "7", "--config=run.yaml"])
        'run.yaml'
    """
    for place, argument in enumerate(arguments):
        if argument.startswith(flag + "="):
            return argument.split("=", 1)[1]
        if argument == flag and place + 1 < len(arguments):
            return arguments[place + 1]
    return ""


def name_and_value(item: str, flag: str, example: str) -> tuple[str, str]:
    """Splits an item of an option that takes name=value.

    Raises:
        ValueError: it has another form.

    Example:
        >>> name_and_value("num_cycles=2", "--lr_scheduler_kwargs", "num_cycles=2")
        ('num_cycles', '2')
    """
    name, equals, value = item.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"{flag} {item}: expected name=value, such as {example}")
    return name, value
