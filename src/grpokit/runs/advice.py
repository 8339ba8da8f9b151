"""Advice about a run, from its metrics so far: each rule gives a sentence and where to read on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Advice:
    """A sentence about a run.

    Example:
        >>> advice = Advice("flat", "warn", "No group has a spread.", 12, "guides/not-learning.md")
    """

    rule: str
    severity: Literal["warn", "note"]
    text: str
    step: int  # the step at which the rule applied
    guide: str  # a file under docs/en/, with an anchor


def advise(
    steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> list[Advice]:
    """Returns what there is to say about a run so far."""
    return []
