"""Prompts in an order of the user's own: a curriculum, whose state is in the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..common.imports import raised_in
from ..common.text import one_line
from ..types import Prompt
from .mixture import RowPrompts

FLAG = "--sampler_order"


class SamplerOrder(Protocol):
    """An order of rows. It may also have `observe`, `state_dict` with `load_state_dict`, and a length.

    * `observe(step, rows, rewards)` is called once a step is scored, with the row numbers of its groups and their mean rewards
      (None where no reward applies).
    * `state_dict()` returns a JSON value, and `load_state_dict(state)` restores it. An order without them must
      be a function of the step alone.
    * `len(order)` is the number of prompts of an epoch, for --num_train_epochs.
    """

    def take(self, step: int, count: int) -> Sequence[int]:
        """Returns the row numbers of `count` prompts. It is called again within a step if groups are resampled."""
        ...


def _ask_here(ask: Callable[[], Any]) -> Any:
    return ask()


class OrderedPrompts:
    """Prompts in the order that the user's object gives. It is asked when a step needs prompts.

    The rows of positions that may still be needed are kept, so that a resumed run has the same prompts for them without asking
    again.

    Args:
        prompts: the prompts, which can be asked for by row.
        make_order: (number of rows, seed) → the order.
        positions: the number of positions that a step reserves.
        seed: the run's seed.
        name: the order's name, for messages.
        ask: calls a function on the main rank alone, and returns its JSON value on every rank.

    Example:
        >>> class Backwards:
        ...     def __init__(self, rows, seed):
        ...         self.rows = rows
        ...     def take(self, step, count):
        ...         return [(self.rows - 1 - step * count - k) % self.rows for k in range(count)]
        >>> ordered = OrderedPrompts(prompts, Backwards, positions=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        prompts: RowPrompts,
        make_order: Callable[[int, int], SamplerOrder],
        positions: int,
        *,
        seed: int = 42,
        name: str = "",
        ask: Callable[[Callable[[], Any]], Any] = _ask_here,
    ) -> None:
        self.prompts, self.positions, self.name, self._ask = prompts, positions, name, ask
        self.columns = prompts.columns
        self._order: Any = None
        self._rows: dict[int, int] = {}  # position → row
        self._ask(lambda: self._begin(make_order, len(prompts), seed))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self.prompts.longest

    def epoch(self) -> int | None:
        """Returns the number of prompts of an epoch: the order's length, or None where it has none."""
        return self._ask(lambda: len(self._order) if hasattr(self._order, "__len__") else None)

    # ------------------------------------------------------------------- prompts

    def take(self, position: int, count: int) -> list[Prompt]:
        """Returns `count` prompts from `position` on. Asks the order for those that it has not given yet. A collective."""
        step = position // self.positions
        if position not in self._rows:
            rows = self._ask(lambda: self._checked(self._call("take", step, count), count))
            self._rows |= {position + place: row for place, row in enumerate(rows)}
        return [self.at(position + offset) for offset in range(count)]

    def at(self, position: int) -> Prompt:
        """Returns the prompt at a position for which `take` was called."""
        return self.prompts.by_row(self._rows[position], position)

    def observe(self, step: int, rewards: Mapping[int, float | None]) -> None:
        """Tells the order the mean rewards of a step's groups, by position. Forgets the rows of earlier steps. A collective."""
        rows = [self._rows[position] for position in rewards]
        self._rows = {p: row for p, row in self._rows.items() if p >= step * self.positions}
        self._ask(lambda: self._tell(step, rows, list(rewards.values())))

    def reaches(self, position: int) -> bool:
        """Tells whether there is a prompt at `position`: the order never ends."""
        return True

    def checked(self) -> list[Prompt]:
        """Returns the prompts that were read at the start."""
        return self.prompts.checked()

    def check_ids(self, rows: int) -> None:
        """Raises ValueError for a prompt with a token that a model of so many rows lacks."""
        self.prompts.check_ids(rows)

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """Returns the first prompts in the order of the data."""
        return self.prompts.in_order(limit)

    # ------------------------------------------------------------------- resume

    def data_state(self, position: int) -> dict[str, Any]:
        """Returns the state for a checkpoint: the order's own, and the rows from `position` on that it has given. A collective.

        Raises:
            ValueError: the order's state can't be written as JSON.
        """
        state = self._ask(self._state)
        return {"state": state, "rows": {str(p): row for p, row in self._rows.items() if p >= position}}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Goes on from what `data_state` returned. A collective."""
        if saved is None:
            return
        self._rows = {int(position): row for position, row in saved["rows"].items()}
        if saved["state"] is not None:
            self._ask(lambda: self._call("load_state_dict", saved["state"]))

    # ------------------------------------------------------------------- the user's object, on the main rank

    def _begin(self, make: Callable[[int, int], SamplerOrder], rows: int, seed: int) -> None:
        self._order = self._guard(make, "the function", rows, seed)
        if not callable(getattr(self._order, "take", None)):
            raise ValueError(
                f"{FLAG} {self.name}: returned a {type(self._order).__name__}; expected an object with take(step, count)"
            )
        own = [hasattr(self._order, name) for name in ("state_dict", "load_state_dict")]
        if any(own) and not all(own):
            raise ValueError(
                f"{FLAG} {self.name}: needs both state_dict() and load_state_dict(state), or none"
            )

    def _tell(self, step: int, rows: list[int], rewards: list[float | None]) -> None:
        if hasattr(self._order, "observe"):
            self._call("observe", step, rows, rewards)

    def _state(self) -> Any:
        if not hasattr(self._order, "state_dict"):
            return None
        state = self._call("state_dict")
        try:
            return json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{FLAG} {self.name}: state_dict() can't be written as JSON: {one_line(error)}"
            ) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._guard(getattr(self._order, method), f"{method}()", *arguments)

    def _guard(self, function: Callable[..., Any], what: str, *arguments: Any) -> Any:
        """Calls the user's code; an error names the order and the line."""
        try:
            return function(*arguments)
        except Exception as error:
            raise ValueError(
                f"{FLAG} {self.name}: {what} raised {type(error).__name__}: {one_line(error)} "
                f"({raised_in(error, function)})"
            ) from error

    def _checked(self, rows: Iterable[Any], count: int) -> list[int]:
        try:
            found = [int(row) for row in rows]
        except (TypeError, ValueError):
            found = []
        total = len(self.prompts)
        if len(found) != count or not all(0 <= row < total for row in found):
            raise ValueError(
                f"{FLAG} {self.name}: take() returned {one_line(rows, 80)}; expected {count} row numbers from 0 to {total - 1}"
            )
        return found
