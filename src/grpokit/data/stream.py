"""Prompts of an iterable that is read as training needs them, in the order in which it gives them."""

from __future__ import annotations

import copy
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..types import Prompt
from .memory import read_raw
from .prompts import check_ids, own_prompt


class PromptStream:
    """The endless prompt order of an iterable of rows: rows are read and tokenized when a step needs them.

    Where the iterable can be iterated again it starts over at its end; an iterator ends. `data_state` and `restore` serve
    resume: by the iterable's own `state_dict()` and `load_state_dict()` where it has them, else by reading past the rows
    that were used.

    Args:
        rows: the iterable.
        make_prompt: (a row's values, its place) → its prompt, or None for a row that is left out; raises ValueError for a bad
            one.
        longest: the limit on a prompt's length, in tokens.
        kept_reads: calls of `take` whose prompts can still be asked for by position.

    Example:
        >>> stream = PromptStream(iter([{"prompt": "a"}]), lambda row, place: Prompt(0, (1,), row["prompt"], {}, place), 8)
        >>> stream.take(0, 1)[0].source, stream.reaches(1)
        ('train_dataset[0]', False)
    """

    def __init__(
        self,
        rows: Iterable[Any],
        make_prompt: Callable[[Any, str], Prompt | None],
        longest: int,
        kept_reads: int = 3,
    ) -> None:
        self.rows, self.make_prompt, self.longest = rows, make_prompt, longest
        self.next_position = 0  # the next prompt to be read
        self.read = 0  # rows read, for messages
        self.prompts: dict[int, Prompt] = {}  # those that may still be asked for
        self.states: dict[int, Any] = {}  # the iterable's state before each of them
        self.starts: deque[int] = deque(maxlen=kept_reads)
        self.iterator: Iterator[Any] | None = None
        # Whether the iterable goes on from a loaded state, where it would start over too.
        self.restored = False
        self.ended = False
        self.first_columns: set[str] = set()
        if not self.reaches(0):
            raise ValueError("--dataset: the iterable has no row to train on; expected at least one")
        self.first_columns = set(self.prompts[0].columns)

    def reaches(self, position: int) -> bool:
        """Tells whether there is a prompt at `position`; reads up to it."""
        while self.next_position <= position and not self.ended:
            self._read_one()
        return self.next_position > position

    def take(self, position: int, count: int) -> list[Prompt]:
        """The `count` prompts from `position` on. Raises ValueError where the iterable has ended before."""
        self.starts.append(position)
        if not self.reaches(position + count - 1):
            raise ValueError(
                f"--dataset: the iterable ended after {self.read} rows, before prompt {position + count}"
            )
        oldest = min(self.starts)
        for kept in (self.prompts, self.states):
            for old in [p for p in kept if p < oldest]:
                del kept[old]
        return [self.at(position + offset) for offset in range(count)]

    def at(self, position: int) -> Prompt:
        """The prompt at `position`, one of those that were read lately."""
        self.reaches(position)
        return own_prompt(self.prompts[position])

    def checked(self) -> list[Prompt]:
        """The prompts to look at before the first step: none, as rows are read when a step needs them."""
        return []

    def check_ids(self, rows: int) -> None:
        """Raises ValueError for a prompt with a token that a model of so many rows lacks, now or when it is read."""
        for prompt in self.prompts.values():
            check_ids(prompt, rows)
        make = self.make_prompt

        def checked(values: Any, place: str) -> Prompt | None:
            prompt = make(values, place)
            return None if prompt is None else check_ids(prompt, rows)

        self.make_prompt = checked

    def data_state(self, position: int) -> dict[str, Any]:
        """The state for a checkpoint, from which reading goes on at `position`. JSON can hold it.

        Raises ValueError where the iterable's own state can't be written as JSON.
        """
        if position >= self.next_position:
            state, position = self._own_state(), self.next_position
        else:
            state = self.states.get(position)
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--dataset: state_dict() of {type(self.rows).__name__} can't be written as JSON: {error}"
            ) from error
        return {"position": position, "state": state, "read": self.read - (self.next_position - position)}

    @property
    def columns(self) -> set[str]:
        """The columns of the first row."""
        return self.first_columns

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Goes on from what `data_state` returned."""
        if saved is None:
            return
        position, state = saved["position"], saved["state"]
        if state is not None and hasattr(self.rows, "load_state_dict"):
            self.rows.load_state_dict(state)  # pyright: ignore[reportAttributeAccessIssue]
            self.iterator, self.next_position, self.ended = iter(self.rows), position, False
            self.read, self.restored = saved.get("read", position), True
            self.prompts, self.states = {}, {}
        else:
            self.reaches(position - 1)

    def _own_state(self) -> Any:
        state_dict = getattr(self.rows, "state_dict", None)
        return copy.deepcopy(state_dict()) if state_dict is not None else None

    def _read_one(self) -> None:
        """Reads until one more prompt is there, or the iterable has ended."""
        state = self._own_state()
        for restarted in itertools.count():
            if self.iterator is None:
                self.iterator = iter(self.rows)
            for row in self.iterator:
                prompt = self._prompt(row)
                if prompt is not None:
                    position = self.next_position
                    self.prompts[position], self.states[position] = replace(prompt, position=position), state
                    self.next_position += 1
                    return
                state = self._own_state()
            # After a resume by its state, an iterable may start over where that state says: so it ends there.
            once = self.iterator is self.rows or self.restored
            self.iterator = None
            if once or restarted:  # it can't start over, or a whole pass gave no prompt
                self.ended = True
                return

    def _prompt(self, row: Any) -> Prompt | None:
        place, values = read_raw(row, f"train_dataset[{self.read}]")
        self.read += 1
        prompt = self.make_prompt(values, place)
        if prompt is None or not self.first_columns:
            return prompt
        return replace(prompt, columns={**dict.fromkeys(sorted(self.first_columns)), **prompt.columns})
