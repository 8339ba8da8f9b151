"""The rule for each option on resume, kept next to the option: `name: type = free(default)`.

An option with a plain default identifies the run (the model, the dataset, the seed, ...). It must equal the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any


def free(default: Any) -> Any:
    """May change on resume; does not affect results."""
    return field(default=default, metadata={"resume": "free"})


def steering(default: Any) -> Any:
    """May change on resume between steps; the change is printed."""
    return field(default=default, metadata={"resume": "steering"})


def optimizer(default: Any) -> Any:
    """Like `steering`, but also allowed when resuming within a step."""
    return field(default=default, metadata={"resume": "optimizer"})


def sampling(default: Any) -> Any:
    """Like `steering`; rollouts sampled ahead are discarded."""
    return field(default=default, metadata={"resume": "sampling"})


def options_with(cls: type, rules: Iterable[str]) -> frozenset[str]:
    """The names of the options of a configuration whose rule is one of `rules`."""
    return frozenset(f.name for f in fields(cls) if f.metadata.get("resume") in tuple(rules))
