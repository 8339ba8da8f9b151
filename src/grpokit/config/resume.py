"""The rule for each option on resume, kept next to the option: `name: type = free(default)`.

An option that is written with a plain default says which run it is (the model, the dataset, the seed, ...): it may not
differ from the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any


def free(default: Any) -> Any:
    """An option that may change on resume: it changes no number of the run."""
    return field(default=default, metadata={"resume": "free"})


def steering(default: Any) -> Any:
    """An option that may change between two steps: the run goes on differently from there, and says so."""
    return field(default=default, metadata={"resume": "steering"})


def optimizer(default: Any) -> Any:
    """An option of the optimizer: as `steering`, and within a step too."""
    return field(default=default, metadata={"resume": "optimizer"})


def sampling(default: Any) -> Any:
    """An option of sampling: as `steering`, and rollouts that wait in the checkpoint are sampled anew."""
    return field(default=default, metadata={"resume": "sampling"})


def options_with(cls: type, rules: Iterable[str]) -> frozenset[str]:
    """The names of the options of a configuration whose rule is one of `rules`."""
    return frozenset(f.name for f in fields(cls) if f.metadata.get("resume") in tuple(rules))
