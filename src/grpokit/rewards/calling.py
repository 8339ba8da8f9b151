"""Calling what may never come back: a time limit on the main thread, and one event loop for async functions."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import signal
import threading
from collections.abc import Awaitable, Iterator, Sequence
from functools import lru_cache
from typing import Any

GRACE = 5.0  # seconds over the limit, for coroutines to take their cancellation


class TimeOut(BaseException):
    """A call took longer than its limit. Not an Exception: `except Exception` in a reward must not keep it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeOut within the block when it takes longer; 0: no limit.

    The block stays on the main thread, since reward functions use what is only there: signals (math-verify's own
    time-outs), event loops, connections of SQLite. It's interrupted by an alarm; and where it has set an alarm of
    its own, which takes ours away, by a thread. What is in C code that looks at no signals is interrupted when it
    comes back from there, no sooner.

    Raises ValueError on another thread, which nothing could interrupt.
    """
    if not seconds:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(f"--reward_timeout {seconds:g}: needs the main thread; use 0 (no limit) on another")
    done = threading.Event()

    def overdue(signum: int, frame: Any) -> None:
        if not done.is_set():
            raise TimeOut

    def nag() -> None:
        wait = seconds
        while not done.wait(wait):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            wait = 1.0  # again: it may have been in an `except:` of the function's

    before = signal.signal(signal.SIGALRM, overdue)
    thread = threading.Thread(target=nag, name="reward time limit", daemon=True)
    thread.start()
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            yield
        finally:
            done.set()
    finally:
        done.set()  # the alarm may have come on the way out of the block
        signal.setitimer(signal.ITIMER_REAL, 0)
        thread.join()  # then no signal is on its way to the handler that was here before
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def awaited_together(calls: Sequence[Awaitable[Any]], seconds: float) -> list[Any]:
    """What each of the calls returned or raised, all awaited at once; TimeOut for those that took longer."""

    async def outcome(call: Awaitable[Any]) -> Any:
        limit = asyncio.timeout(seconds or None)
        try:
            async with limit:
                return await call
        except TimeoutError as error:
            return TimeOut() if limit.expired() else error
        except (Exception, SystemExit) as error:  # noqa: BLE001 (it's raised by who asked, with the function's name)
            return error

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(outcome, calls))

    try:
        with time_limit(seconds and seconds + GRACE):
            return _runner().run(all_of_them())
    except BaseException:  # it may have been stopped anywhere
        _runner().close()
        _runner.cache_clear()
        raise


@lru_cache(maxsize=1)
def _runner() -> asyncio.Runner:
    """One event loop for the whole run: clients that functions keep open belong to the loop that opened them."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner
