"""Runs work that waits for calls on other threads: many pieces of it at the same time, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
Waiting = Generator[list[Future[Any]], None, T]
"""Work that yields calls that are under way, and goes on once all of them have ended. Its value is what it returns."""

LOOK_EVERY = 0.5  # seconds between two looks at `stop`


def together(pieces: Sequence[Waiting[T]], stop: Callable[[], bool] = lambda: False) -> list[T]:
    """Runs all pieces to their end. A piece that waits holds up no other.

    Args:
        pieces: the work.
        stop: asked while all of them wait; True ends the waiting.

    Returns:
        What each piece returned, in order.

    Raises:
        Exception: what the first piece in order that failed has raised, once all have ended.
        InterruptedError: `stop()` returned True.

    Example:
        >>> def piece(number):
        ...     yield []
        ...     return number * 2
        >>> together([piece(1), piece(2)])
        [2, 4]
    """
    found: dict[int, T] = {}
    failed: dict[int, Exception] = {}
    waits: dict[int, list[Future[Any]]] = {number: [] for number in range(len(pieces))}
    try:
        while waits:
            for number in [n for n, calls in waits.items() if all(call.done() for call in calls)]:
                try:
                    waits[number] = next(pieces[number])
                except StopIteration as ended:
                    found[number] = ended.value
                    del waits[number]
                except Exception as error:  # noqa: BLE001 - raised below, once all pieces have ended
                    failed[number] = error
                    del waits[number]
            under_way = {call for calls in waits.values() for call in calls if not call.done()}
            blocked = all(any(not call.done() for call in calls) for calls in waits.values())
            if waits and blocked:
                wait(under_way, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
                if stop():
                    raise InterruptedError("stopped while tools or environments were being waited for")
    finally:
        for piece in pieces:
            piece.close()
    if failed:
        raise failed[min(failed)]
    return [found[number] for number in range(len(pieces))]
