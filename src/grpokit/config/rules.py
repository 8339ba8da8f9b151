"""One check of a configuration: the flag, when it holds, and what would work. The tables of rules are made of these."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..common.hub import is_hub_model
from ..common.text import FROM_PYTHON
from ..data.sources import is_dataset_path, is_hub_name


class Rule(NamedTuple):
    """One check. Example: `Rule("beta", lambda c: c.beta >= 0, "must be 0 or more")`"""

    flag: str
    holds: Callable[[Any], bool]
    expected: str | Callable[[Any], str]  # may name options of the configuration: "{c.beta}"
    shown: str | None = None  # in place of the flag's value

    def check(self, config: Any) -> None:
        """Raises ValueError where it doesn't hold."""
        if not self.holds(config):
            shown = _Shown(config)
            value = getattr(shown, self.flag) if self.shown is None else self.shown
            given = f"--{self.flag} {value}"
            if isinstance(value, bool):  # such a flag takes no value
                given = f"--{self.flag}" if value else f"--no_{self.flag}"
            expected = self.expected if isinstance(self.expected, str) else self.expected(config)
            raise ValueError(f"{given}: {expected.format(c=shown, ranks=ranks())}")


class _Shown:
    """A configuration whose lists read as on the command line."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        value = " ".join(map(str, value)) if isinstance(value, tuple) else value
        if isinstance(value, str) and not value.isprintable():  # a stop string may be a line break
            return "".join(each if each.isprintable() else repr(each)[1:-1] for each in value)
        return value


def ranks() -> int:
    """The number of processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def at_least(least: int, flags: str) -> list[Rule]:
    """A rule for each of the flags: its value is at least 0 or 1."""
    expected = "must be at least 1" if least else "must be 0 or more"
    return [Rule(flag, lambda c, flag=flag: getattr(c, flag) >= least, expected) for flag in flags.split()]


def above_0(flags: str) -> list[Rule]:
    """A rule for each of the flags: its value is above 0."""
    return [
        Rule(flag, lambda c, flag=flag: getattr(c, flag) > 0, "must be above 0") for flag in flags.split()
    ]


def is_given(value: str) -> bool:
    """Tells whether a model or a dataset was given as an object."""
    return value.startswith(FROM_PYTHON)


def has_model(value: str) -> bool:
    """Tells whether a value names a model: a directory with a config.json, a model of the Hub, or an object."""
    return is_given(value) or is_hub_model(value) or (Path(value) / "config.json").is_file()


def has_data(value: str) -> bool:
    """Tells whether a value names a dataset: something on disk, of the Hub, or in memory."""
    return is_given(value) or is_dataset_path(value) or is_hub_name(value)


def is_adapter(value: str) -> bool:
    """Tells whether a model's directory holds an adapter alone."""
    return (Path(value) / "adapter_config.json").is_file() and not (Path(value) / "config.json").is_file()
