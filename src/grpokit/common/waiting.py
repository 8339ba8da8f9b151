"""Runs work that waits for calls on other threads: many pieces of it at the same time, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
Waiting = Generator[list[Future[Any]], None, T]
"""A generator that yields lists of running calls and is resumed once all calls of the list have ended. It returns a `T`."""

LOOK_EVERY = 0.5  # seconds between two looks at `stop`


def together(
    pieces: Sequence[Waiting[T]],
    stop: Callable[[], bool] = lambda: False,
    work: Callable[[int], bool] = lambda waiting: False,
    ended: Callable[[int, T], None] = lambda number, value: None,
) -> list[T]:
    """Runs all pieces to their end. A piece that waits holds up no other.

    Args:
        pieces: the work.
        stop: asked while all of them wait; True ends the waiting.
        work: called with the number of unfinished pieces, while all of them wait. It may run, on this thread, calls that
            some of them wait for. It returns whether it did anything.
        ended: called with a piece's number, and what it returned, as soon as it has ended.

    Returns:
        What each piece returned, in order.

    Raises:
        Exception: a piece raised it. The other pieces are closed at the `yield` where they wait.
        InterruptedError: `stop()` returned True.

    Example:
        >>> def piece(number):
        ...     yield []
        ...     return number * 2
        >>> together([piece(1), piece(2)])
        [2, 4]
    """
    found: dict[int, T] = {}
    waits: dict[int, list[Future[Any]]] = {number: [] for number in range(len(pieces))}
    try:
        while waits:
            ready = [number for number, calls in waits.items() if all(call.done() for call in calls)]
            for number in ready:
                try:
                    waits[number] = next(pieces[number])
                except StopIteration as last:
                    found[number] = last.value
                    del waits[number]
                    ended(number, last.value)
            if ready:
                continue
            if stop():
                raise InterruptedError("stopped while an engine, tools or environments were being waited for")
            if not work(len(waits)):
                under_way = {call for calls in waits.values() for call in calls if not call.done()}
                wait(under_way, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
    finally:
        for piece in pieces:
            piece.close()
    return [found[number] for number in range(len(pieces))]
