"""The signatures of reward functions that are in use, told apart by their parameters, and made into one.

* TRL's: `f(completions, prompts, completion_ids, **columns)`, lists in, a list out. It's the house's own.
* ms-swift's: a class (or an object of it) with `__call__(self, completions, **kwargs)`; completions are always text.
* verl's: `compute_score(data_source, solution_str, ground_truth, extra_info=None)`, called for each completion; it
  returns a number, or a dict with `score`.

Each may be `async def`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

from .builtin import RewardFunction, text_of

TRL, SWIFT, VERL = "TRL's signature", "ms-swift's, completions as text", "verl's, called for each completion"


def unwrap(fn: RewardFunction) -> Any:
    """The function itself, under its decorators, partials and adapters."""
    inner = inspect.unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    return inner


def is_async(fn: RewardFunction) -> bool:
    """Whether calling it gives something to await."""
    inner = unwrap(fn)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def adapt_signature(
    fn: RewardFunction, answer_column: Callable[[], str], was_class: bool = False
) -> tuple[RewardFunction, str]:
    """(the same function under the house's signature, which one its own is).

    `was_class`: it's an object that was made from a class, which only ms-swift's users name.
    `answer_column` says which column verl's `ground_truth` is; it's only asked where there is one, and may raise.
    """
    names = inspect.signature(fn).parameters
    if "solution_str" in names:
        return PerCompletion(fn, answer_column() if "ground_truth" in names else ""), VERL
    if was_class or any(base.__name__ in ("ORM", "AsyncORM") for base in type(fn).__mro__):
        return _of_texts(fn), SWIFT
    return fn, TRL


def _of_texts(fn: RewardFunction) -> RewardFunction:
    """`fn` with completions as texts, whatever they are."""

    def call(*args: Any, completions: Sequence[Any], **columns: Any) -> Any:
        return fn(*args, completions=[text_of(completion) for completion in completions], **columns)

    call.__wrapped__ = fn  # type: ignore[attr-defined]  # messages name its file and line
    call.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    return call


class PerCompletion:
    """verl's function, called for each completion that has a reference.

    Attributes: `at`, the completion that it's at, or that it failed at; None before the first.
    """

    def __init__(self, fn: RewardFunction, answer_column: str) -> None:
        self.__wrapped__ = fn
        self.answer_column = answer_column
        self.at: int | None = None
        own = [
            p
            for name, p in inspect.signature(fn).parameters.items()
            if name not in ("solution_str", "ground_truth")
        ]
        by_name = [
            p.replace(kind=Parameter.KEYWORD_ONLY) if p.kind is not Parameter.VAR_KEYWORD else p for p in own
        ]
        ours = ["completions", *([answer_column] if answer_column else [])]
        self.parameters = [p.name for p in by_name if p.kind is Parameter.KEYWORD_ONLY]
        asked = [Parameter(name, Parameter.KEYWORD_ONLY) for name in ours if name not in self.parameters]
        # A **kwargs of verl's gets what verl passes, which is nothing that a dataset has: so it isn't asked for.
        self.__signature__ = Signature([*asked, *(p for p in by_name if p.kind is Parameter.KEYWORD_ONLY)])

    def __call__(self, **columns: Sequence[Any]) -> Any:
        """[B] scores, or something to await that becomes them; None where the reference is."""
        self.at = None
        calls = [self._arguments(row, columns) for row in range(len(columns["completions"]))]
        if is_async(self):
            return self._gathered(calls)
        scores = []
        for self.at, given in enumerate(calls):
            scores.append(None if given is None else _score(self.__wrapped__(**given)))
        self.at = None
        return scores

    def _arguments(self, row: int, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
        given = {name: columns[name][row] for name in self.parameters if name in columns}
        given["solution_str"] = text_of(columns["completions"][row])
        if self.answer_column:
            given["ground_truth"] = columns[self.answer_column][row]
            if given["ground_truth"] is None:
                return None
        return given

    async def _gathered(self, calls: Sequence[dict[str, Any] | None]) -> list[Any]:
        return await asyncio.gather(*(self._awaited(row, given) for row, given in enumerate(calls)))

    async def _awaited(self, row: int, given: dict[str, Any] | None) -> Any:
        try:
            return None if given is None else _score(await self.__wrapped__(**given))
        except Exception:
            self.at = row if self.at is None else self.at
            raise


def _score(returned: Any) -> Any:
    """A number, of verl's dict its `score`. Raises TypeError for a dict without one."""
    if not isinstance(returned, Mapping):
        return returned
    if "score" not in returned:
        raise TypeError(f"returned {dict(returned)!r}; expected a number or a dict with `score`")
    return returned["score"]
