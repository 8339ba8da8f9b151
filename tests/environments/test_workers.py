"""Calls on other threads: their limits, and what is left of a call that never returns."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from grpokit.common.waiting import together
from grpokit.environments.workers import TimedOut, Workers


def test_calls_run_at_the_same_time():
    workers, barrier = Workers(8), threading.Barrier(8)
    calls = [workers.submit(lambda: barrier.wait(10), is_async=False, seconds=20) for _ in range(8)]
    assert sorted(call.result() for call in calls) == list(range(8))
    workers.close()


def test_a_call_that_hangs_is_abandoned_and_its_thread_replaced():
    workers, release = Workers(1), threading.Event()
    hung = workers.submit(release.wait, is_async=False, seconds=0.2)
    with pytest.raises(TimedOut, match=r"no answer within 0\.2 seconds"):
        hung.result(10)
    assert workers.submit(lambda: 7, is_async=False, seconds=5).result(10) == 7
    release.set()
    workers.close()


def test_the_limit_counts_from_when_a_call_begins():
    workers = Workers(1)
    calls = [workers.submit(lambda: time.sleep(0.15), is_async=False, seconds=0.6) for _ in range(6)]
    assert [call.result(10) for call in calls] == [None] * 6
    workers.close()


def test_async_calls_are_awaited_together():
    workers, began = Workers(1), []

    async def slow():
        began.append(1)
        while len(began) < 20:
            await asyncio.sleep(0.001)
        return len(began)

    calls = [workers.submit(slow, is_async=True, seconds=10) for _ in range(20)]
    assert [call.result(10) for call in calls] == [20] * 20

    async def hangs():
        await asyncio.sleep(1000)

    with pytest.raises(TimedOut):
        workers.submit(hangs, is_async=True, seconds=0.1).result(10)
    workers.close()


def test_what_a_call_raises_is_its_result():
    workers = Workers(2)
    with pytest.raises(SystemExit):
        workers.submit(sys.exit, is_async=False, seconds=5).result(10)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0, is_async=False, seconds=5).result(10)
    assert workers.submit(lambda: 1, is_async=False, seconds=5).result(10) == 1
    workers.close()


def test_a_piece_that_waits_holds_up_no_other():
    workers, order = Workers(4), []

    def piece(name, seconds):
        for _ in range(2):
            yield [workers.submit(lambda: time.sleep(seconds), is_async=False, seconds=5)]
        order.append(name)
        return name

    assert together([piece("slow", 0.2), piece("fast", 0.01)]) == ["slow", "fast"]
    assert order == ["fast", "slow"]
    with pytest.raises(InterruptedError):
        together([piece("slow", 2.0)], stop=lambda: True)
    workers.close()
