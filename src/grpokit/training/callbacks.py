"""Callbacks: a user's objects that watch a run from Python, and may end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..common.imports import raised_in
from ..common.text import did_you_mean, one_line
from ..parallel import World
from ..types import RolloutGroup

STOP = "stop"
METHODS = ("on_step_end", "on_evaluate", "on_save", "on_train_end")


class CallbackError(RuntimeError):
    """A callback raised; the message names it, the method and the line."""


class Callback(Protocol):
    """What `callbacks=` takes: an object with any of these methods. Each may return "stop" to end the run cleanly.

    They run on every rank, with the groups of the whole step.

    Example:
        >>> class StopAtReward:
        ...     def on_step_end(self, step, metrics, groups):
        ...         return "stop" if metrics["reward"] > 0.95 else None
    """

    def on_step_end(
        self, step: int, metrics: Mapping[str, float], groups: Sequence[RolloutGroup]
    ) -> str | None:
        """After step `step`, counted from 1: its metrics, as in metrics.jsonl, and its scored groups."""
        ...

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """After an evaluation: its figures, as in evaluations.jsonl."""
        ...

    def on_save(self, step: int, path: Path) -> str | None:
        """After a checkpoint was written to `path`."""
        ...

    def on_train_end(self, step: int, path: Path) -> str | None:
        """After the last step: `path` is the directory of the final model."""
        ...


class Callbacks:
    """The callbacks of a run. `stops` says whether any of them, on any rank, asked the run to end."""

    def __init__(self, callbacks: Sequence[Any] = (), world: World | None = None) -> None:
        self.callbacks, self.world = tuple(callbacks), world or World()
        self.any = self.world.any(bool(self.callbacks))  # on some rank: then all ranks wait for each other
        self.stops = False

    def call(self, method: str, *arguments: Any) -> None:
        """Calls `method` of each callback that has it. All ranks call this.

        Raises CallbackError (FailedOnSomeRank among several ranks) where one raises.
        """
        if not self.any:
            return
        wants_stop = False
        with self.world.together():
            for callback in self.callbacks:
                function = getattr(callback, method, None)
                if function is not None:
                    wants_stop |= _call(function, method, callback, arguments)
        self.stops |= self.world.any(wants_stop)


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raises ValueError for an object without any of METHODS, or with one that can't be called."""
    if not isinstance(callbacks, list | tuple):
        raise ValueError(
            f"callbacks: a {type(callbacks).__name__}; expected a list of objects: callbacks=[...]"
        )
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, type):
            raise ValueError(
                f"callbacks: {callback.__name__} is a class; make an object of it: {callback.__name__}()"
            )
        if any(
            c.__name__ == "TrainerCallback" and c.__module__.startswith("transformers")
            for c in type(callback).__mro__
        ):
            raise ValueError(
                f"callbacks: {name} is a callback of transformers' Trainer, which is called with args, state and control; here "
                "an object has on_step_end(self, step, metrics, groups) (docs/en/python.md)"
            )
        found = [method for method in METHODS if hasattr(callback, method)]
        if not found:
            known = [attribute for attribute in dir(callback) if attribute.startswith("on_")]
            near = did_you_mean(known[0], METHODS) if known else ""
            has = f"it has {', '.join(known)}{near}" if known else "it has none"
            raise ValueError(f"callbacks: {name}: expected any of the methods {', '.join(METHODS)}; {has}")
        for method in found:
            if not callable(getattr(callback, method)):
                raise ValueError(f"callbacks: {name}.{method} is not a method")


def _call(function: Any, method: str, callback: Any, arguments: tuple[Any, ...]) -> bool:
    """Calls one method and returns whether it asks for the end of the run."""
    name = f"{type(callback).__name__}.{method}"
    try:
        answer = function(*arguments)
    except Exception as error:
        raise CallbackError(
            f"callback {name} raised {type(error).__name__}: {one_line(error)} ({raised_in(error, function)})"
        ) from error
    if answer not in (None, STOP):
        raise CallbackError(f'callback {name} returned {answer!r}; expected "stop", or nothing')
    return answer == STOP
