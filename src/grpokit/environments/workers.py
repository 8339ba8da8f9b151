"""Calls tools and environments: sync functions on threads, async ones in one event loop, each under its time limit."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

GRACE = 5.0  # seconds over the limit, for a coroutine to handle its cancellation


class TimedOut(Exception):
    """A call took longer than its time limit. Its thread is abandoned."""


class Workers:
    """Makes calls at the same time. A call that never returns is abandoned, and its thread is replaced.

    All threads are daemons, so a run with hung calls still ends.

    Args:
        size: the most sync calls at once.

    Example:
        >>> Workers(2).submit(lambda: 3 + 4, is_async=False, seconds=1.0).result()
        7
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads, self._closed = 0, False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, call: Callable[[], Any], *, is_async: bool, seconds: float) -> Future[Any]:
        """Begins a call.

        Args:
            call: without arguments; where it is async, it makes the coroutine.
            is_async: whether its result is awaited.
            seconds: its time limit, from when it begins; 0: none.

        Returns:
            Its future result. Raises what the call raised, SystemExit included, or TimedOut.
        """
        task = _Task(call, seconds)
        if is_async:
            loop = self._running_loop()
            asyncio.run_coroutine_threadsafe(task.awaited(), loop)
            if seconds:  # a coroutine that blocks the loop never gets to its own limit
                task.limit(seconds + GRACE, lambda: self._forget_loop(loop))
            return task.future
        self._tasks.put(task)
        with self._lock:
            if self._threads < self.size:
                self._start_thread()
        return task.future

    def close(self) -> None:
        """Ends the idle threads and the event loop."""
        with self._lock:
            for _ in range(self._threads):
                self._tasks.put(None)
            self._threads, self._closed = 0, True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="grpokit environment", daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            abandoned = threading.Event()

            def abandon(abandoned: threading.Event = abandoned) -> None:
                abandoned.set()
                with self._lock:
                    if not self._closed:
                        self._threads -= 1
                        self._start_thread()

            task.run(abandon)
            if abandoned.is_set():  # another thread has taken this one's place
                return

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()

            def run() -> None:
                loop.run_forever()
                loop.close()

            threading.Thread(target=run, name="grpokit environments", daemon=True).start()
        return self._loop

    def _forget_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            self._loop = None


class _Task:
    """A call, its time limit, and its future result."""

    def __init__(self, call: Callable[[], Any], seconds: float) -> None:
        self.call, self.seconds = call, seconds
        self.future: Future[Any] = Future()
        self.context = contextvars.copy_context()
        self.timer: threading.Timer | None = None

    def limit(self, seconds: float, when_over: Callable[[], None]) -> None:
        """Ends the future with TimedOut after so many seconds, and calls `when_over`, unless it is done by then."""

        def over() -> None:
            with suppress(InvalidStateError):
                self.future.set_exception(TimedOut(f"no answer within {self.seconds:g} seconds"))
                when_over()

        self.timer = threading.Timer(seconds, over)
        self.timer.daemon = True
        self.timer.start()

    def run(self, abandon: Callable[[], None]) -> None:
        """Makes a sync call on this thread. `abandon` is called where it takes too long."""
        if self.seconds:
            self.limit(self.seconds, abandon)
        try:
            value = self.context.run(self.call)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: the caller decides
            self._end(error=error)
        else:
            self._end(value)

    async def awaited(self) -> None:
        """Awaits an async call."""
        limit = asyncio.timeout(self.seconds or None)
        try:
            async with limit:
                value = await self.call()
        except TimeoutError as error:
            late = TimedOut(f"no answer within {self.seconds:g} seconds") if limit.expired() else error
            self._end(error=late)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: the caller decides
            self._end(error=error)
        else:
            self._end(value)

    def _end(self, value: Any = None, error: BaseException | None = None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        with suppress(InvalidStateError):  # it had timed out
            if error is None:
                self.future.set_result(value)
            else:
                self.future.set_exception(error)
