"""Adapts the common signatures of reward functions, recognised by their parameters, to TRL's.

* TRL: `f(completions, prompts, completion_ids, **columns)`, lists in, a list out. grpokit's own signature.
* ms-swift: a class (or an object of it) with `__call__(self, completions, **kwargs)`; completions are always text.
* verl: `compute_score(data_source, solution_str, ground_truth, extra_info=None)`, called per completion; it returns a
  number, or a dict with `score`.

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
from .reporting import REPORTED

TRL, SWIFT, VERL = "TRL's signature", "ms-swift's, completions as text", "verl's, called for each completion"


def unwrap(fn: RewardFunction) -> Any:
    """Returns the function under its decorators, partials and adapters."""
    inner = inspect.unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    return inner


def is_async(fn: RewardFunction) -> bool:
    """Checks whether a call returns something to await."""
    inner = unwrap(fn)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def adapt_signature(
    fn: RewardFunction, answer_column: Callable[[], str], was_class: bool = False
) -> tuple[RewardFunction, str]:
    """Returns the function under TRL's signature, and which signature it had.

    Args:
        fn: the function or object.
        answer_column: returns the column for verl's `ground_truth`. Called only where there is one; may raise.
        was_class: whether the object was made from a class, which only ms-swift's users name.
    """
    names = inspect.signature(fn).parameters
    if "solution_str" in names:
        return PerCompletion(fn, answer_column() if "ground_truth" in names else ""), VERL
    if was_class or any(base.__name__ in ("ORM", "AsyncORM") for base in type(fn).__mro__):
        return _of_texts(fn), SWIFT
    return fn, TRL


def _of_texts(fn: RewardFunction) -> RewardFunction:
    """Wraps `fn` so that it gets completions as texts."""

    def call(*args: Any, completions: Sequence[Any], **columns: Any) -> Any:
        return fn(*args, completions=[text_of(completion) for completion in completions], **columns)

    call.__wrapped__ = fn  # type: ignore[attr-defined]  # messages name its file and line
    call.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    return call


class AtCompletion(Exception):
    """An async reward function failed at one of its completions. It may be scoring other groups at the same time.

    Args:
        error: what it raised.
        row: the completion's number in the call.
    """

    def __init__(self, error: Exception, row: int) -> None:
        super().__init__(str(error))
        self.error, self.row = error, row


class PerCompletion:
    """verl's function, called once per completion that has a reference.

    Attributes:
        at: the completion that a function without `async` is at, or failed at; None before the first.
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
        # verl's **kwargs get what verl passes, which no dataset has, so they are not asked for.
        self.__signature__ = Signature([*asked, *(p for p in by_name if p.kind is Parameter.KEYWORD_ONLY)])

    def __call__(self, **columns: Sequence[Any]) -> Any:
        """Returns [B] scores, or an awaitable of them; None where the reference is None."""
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
        given = {
            name: columns[name] if name in REPORTED else columns[name][row]
            for name in self.parameters
            if name in columns
        }
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
        except Exception as error:
            raise AtCompletion(error, row) from error


def _score(returned: Any) -> Any:
    """Returns the number, or the `score` of verl's dict. Raises TypeError for a dict without one."""
    if not isinstance(returned, Mapping):
        return returned
    if "score" not in returned:
        raise TypeError(f"returned {dict(returned)!r}; expected a number or a dict with `score`")
    return returned["score"]
