"""Advice: rules that look at a run's metrics and say in a sentence what is likely wrong, with the figure and a guide.

The console, the report and `grpokit watch` use the same rules. Importing this imports neither matplotlib nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .history import History, Row
from .rules import RULES

GUIDE = "guides/not-learning.md"


@dataclass(frozen=True)
class Advice:
    """A sentence about a run.

    Example:
        >>> rows = [{"step": s, "completions/clipped_ratio": 0.5} for s in range(1, 11)]
        >>> [found.rule for found in advise(rows)]
        ['truncation']
    """

    rule: str  # the key of RULES
    severity: Literal["warn", "note"]  # warn: the run is likely to fail; note: worth a look
    text: str  # with the figure, and what to do
    step: int  # the step after which it was first seen
    guide: str  # the page and section under docs/en/ and docs/zh/
    now: bool = True  # whether it still holds after the last step


class Adviser:
    """Looks at a run's metrics step by step.

    Args:
        config: the run's options by name.
    """

    def __init__(self, config: Row) -> None:
        self.history = History(config)
        self.found: dict[str, Advice] = {}  # rule → its advice, in the order in which they were seen

    def add(self, row: Row) -> list[Advice]:
        """Takes the metrics of one more step. Returns the advice that was not given before."""
        self.history.add(row)
        if any(name.startswith("eval/") for name in row):
            self.history.evaluations.append(row)
        new: list[Advice] = []
        for name, rule in RULES.items():
            text = rule.find(self.history)
            known = self.found.get(name)
            if known is not None:
                self.found[name] = replace(known, text=text or known.text, now=text is not None)
            elif text is not None:
                step = int(row.get("step", self.history.count))
                self.found[name] = Advice(name, rule.severity, text, step, f"{GUIDE}#{rule.section}")
                new.append(self.found[name])
        return new

    def advice(self) -> list[Advice]:
        """Returns all advice so far: what holds now first."""
        return sorted(self.found.values(), key=lambda found: not found.now)

    def start(self, steps: Sequence[Row], evaluations: Sequence[Row]) -> None:
        """Takes the rows of metrics.jsonl and evaluations.jsonl that there are."""
        held_out = {row.get("step"): row for row in evaluations}
        self.history.evaluations += [held_out[0]] if 0 in held_out else []
        for row in steps:
            self.add({**held_out.get(row.get("step"), {}), **row})


def advise(steps: Sequence[Row], evaluations: Sequence[Row] = (), config: Row | None = None) -> list[Advice]:
    """Returns all advice about a run so far: what holds now first, then what held earlier.

    Args:
        steps: rows of metrics.jsonl, in order.
        evaluations: rows of evaluations.jsonl.
        config: the run's options by name; None: none are known.

    Returns:
        One piece of advice for each rule that has fired, with the figures of the last time that it held.
    """
    adviser = Adviser(config or {})
    adviser.start(steps, evaluations)
    return adviser.advice()
