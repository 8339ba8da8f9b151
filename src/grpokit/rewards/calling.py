"""Calls functions that may never return: a time limit on the main thread, and one event loop for async functions."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..common.loops import forget_loop, loop_is_running, run_in_thread

PATIENCE = 10  # alarms that a function may catch
GRACE = 5.0  # seconds over the limit, for coroutines to handle their cancellation


class TimeOut(BaseException):
    """A call took longer than its limit. It is no Exception, so `except Exception` in a reward does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float, give_up: Callable[[], None] | None = None) -> Iterator[None]:
    """Raises TimeOut inside the block when it takes longer than `seconds`; 0: no limit.

    The block stays on the main thread, because reward functions use what works only there: signals (math-verify's own
    time-outs), event loops, SQLite connections. An alarm interrupts it, and again every second, because a function may catch it
    and go on. After PATIENCE alarms, `give_up` is called inside the block. If the block sets an alarm of its own, which replaces
    this one, a thread sends the signal instead. C code that ignores signals is interrupted when it returns to Python.

    Raises:
        ValueError: called on another thread, where nothing could interrupt the block.
    """
    if not seconds:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(f"--reward_timeout {seconds:g}: needs the main thread; use 0 (no limit) on another")
    done, alarms = threading.Event(), itertools.count(1)

    def overdue(signum: int, frame: Any) -> None:
        if done.is_set():
            return
        if give_up is not None and next(alarms) > PATIENCE:
            give_up()
        raise TimeOut

    def nag() -> None:
        wait = seconds
        while not done.wait(wait):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            wait = 1.0  # repeats, because the first may have been caught by the function's own `except:`

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
        thread.join()  # after that, no signal can reach the handler that was here before
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


class GivenUp(BaseException):
    """The outcome of a call that was given up because another one had failed."""


def awaited_together(calls: Sequence[tuple[Awaitable[Any], float]], until_failure: bool = False) -> list[Any]:
    """Awaits all calls at once, each with its limit in seconds (0: none).

    Args:
        calls: the calls, and their limits.
        until_failure: cancels those that are under way once one has failed.

    Returns:
        What each returned or raised; TimeOut for one that took longer, and GivenUp for one that was cancelled.
    """

    async def outcome(call: Awaitable[Any], seconds: float) -> Any:
        limit = asyncio.timeout(seconds or None)
        try:
            async with limit:
                return await call
        except TimeoutError as error:
            return TimeOut() if limit.expired() else error
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the caller raises it, with the function's name)
            return error

    async def all_of_them() -> list[Any]:
        tasks = [asyncio.ensure_future(outcome(*call)) for call in calls]
        left = set(tasks)
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            if until_failure and any(isinstance(task.result(), BaseException) for task in done):
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
                break
        return [GivenUp() if task.cancelled() else task.result() for task in tasks]

    limits = [seconds for _, seconds in calls]
    longest = max(limits) + GRACE if all(limits) else 0.0
    in_notebook = loop_is_running()
    try:
        with time_limit(longest):
            return run_in_thread(all_of_them()) if in_notebook else _runner().run(all_of_them())
    except BaseException:  # the loop may have been stopped anywhere
        if in_notebook:
            forget_loop()
            raise
        _runner().close()
        _runner.cache_clear()
        raise


@lru_cache(maxsize=1)
def _runner() -> asyncio.Runner:
    """One event loop for the whole run, because clients that functions keep open belong to the loop that opened them."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner
