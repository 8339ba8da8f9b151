"""Runs coroutines from ordinary code, also where this thread's event loop runs already, as in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")


def loop_is_running() -> bool:
    """Tells whether an event loop runs in this thread, so that `asyncio.run` would refuse."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on an event loop of another thread, and waits for it.

    There is one such loop in a process: clients that coroutines keep open belong to the loop that opened them. Where the
    wait is interrupted, the coroutine is cancelled.
    """
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def forget_loop() -> None:
    """Lets the next `run_in_thread` make a new loop. A coroutine that never returns blocks the present one."""
    _loop.cache_clear()


def run_anywhere(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end: by `asyncio.run`, or in another thread where a loop runs in this one."""
    return run_in_thread(work) if loop_is_running() else asyncio.run(work)


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="grpokit event loop", daemon=True).start()
    return loop
