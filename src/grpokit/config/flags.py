"""Checks the flags of a command line before they are parsed, so that a mistake is one line that says what would work."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import fields

from .hints import hint

FLAG = re.compile(r"--([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
TRUTH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def given_flags(words: Sequence[str]) -> list[str]:
    """Returns the names of the flags of a command line.

    Example:
        >>> given_flags(["--max-steps", "7", "--dataset=a.jsonl"])
        ['max_steps', 'dataset']
    """
    return [found[1].replace("-", "_") for word in words if (found := FLAG.fullmatch(word))]


def check_flags(words: Sequence[str], config: type, command: str) -> None:
    """Raises ValueError for a flag that the command doesn't have, or a value behind a flag that takes none.

    Args:
        words: the words behind the command.
        config: the command's configuration.
        command: its name, for messages.
    """
    hints = typing.get_type_hints(config)
    known = {field.name for field in fields(config)}
    switches = {name for name in known if hints[name] is bool}
    for word, after in zip(words, [*words, ""][1:], strict=True):
        found = FLAG.fullmatch(word)
        if found is None:
            continue
        name = found[1].replace("-", "_")
        positive = name.removeprefix("no_")
        if name in switches or (name not in known and positive in switches):
            _check_switch(name, after if found[2] is None else found[2], has_equals=found[2] is not None)
        elif name not in known:
            near = hint(name, config).replace("mean '", "mean '--")
            raise ValueError(
                f"--{found[1]}: no such option of grpokit {command}{near}; see grpokit {command} --help"
            )


def _check_switch(name: str, value: str, has_equals: bool) -> None:
    """Raises ValueError where a value follows a flag that takes none."""
    truth = TRUTH.get(value.lower())
    if truth is None and not has_equals:
        return
    off = name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"
    fix = "write it alone" if truth is None else f"write --{name if truth else off}"
    raise ValueError(f"--{name} {value}: takes no value; {fix}")
