"""Routes: which reward functions score which rows, by the value of a column (`--reward_routes`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..common.text import did_you_mean
from ..config.reward_rules import parse_routes
from ..types import Prompt


@dataclass(frozen=True)
class Route:
    """The rows that a function scores.

    Example:
        >>> row = Prompt(0, (1,), "q", {"data_source": "math"}, "a.jsonl:1")
        >>> Route("data_source", frozenset({"math"})).leads_to(row)
        True
    """

    column: str
    values: frozenset[str]

    def __str__(self) -> str:
        return f"{self.column} {' or '.join(sorted(self.values))}"

    def leads_to(self, prompt: Prompt) -> bool:
        """Tells whether the prompt's row has one of the values."""
        return str(prompt.columns.get(self.column)) in self.values


def empty_routes(routes: Iterable[Route | None], prompts: Sequence[Prompt]) -> list[str]:
    """Says which values of the routes no row has. The rows may be the first ones of a dataset that is read lazily.

    Example:
        >>> row = Prompt(0, (1,), "q", {"data_source": "math"}, "a.jsonl:1")
        >>> empty_routes([Route("data_source", frozenset({"maths"}))], [row])
        ["maths: no row that was read has it in data_source (did you mean 'math'?)"]
    """
    wanted = {(route.column, value) for route in routes if route is not None for value in route.values}
    known: dict[str, set[str]] = {}
    for column in {column for column, _ in wanted}:
        known[column] = {str(prompt.columns.get(column)) for prompt in prompts}
    return [
        f"{value}: no row that was read has it in {column}{did_you_mean(value, known[column])}"
        for column, value in sorted(wanted)
        if value not in known[column]
    ]


def find_routes(options: Sequence[str], names: Collection[str], columns: Collection[str]) -> dict[str, Route]:
    """Returns the route of each function that --reward_routes names. Functions without a route score every row.

    Raises:
        ValueError: there is no such column or function.
    """
    if not options:
        return {}
    column, by_value = parse_routes(options)
    if column not in columns:
        raise ValueError(
            f"--reward_routes {column}: no such column{did_you_mean(column, columns)}; there are "
            f"{', '.join(sorted(columns)) or 'none'}"
        )
    named = {name for several in by_value.values() for name in several}
    for name in sorted(named - set(names)):
        raise ValueError(
            f"--reward_routes {name}: no such function in --reward_funcs{did_you_mean(name, names)}; there are "
            f"{', '.join(names)}"
        )
    return {
        name: Route(column, frozenset(value for value, several in by_value.items() if name in several))
        for name in named
    }
