"""Async reward functions, and those that never come back."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
import time

import pytest

from grpokit.rewards import Reward, RewardError, score
from grpokit.rewards.calling import TimeOut, time_limit
from helpers.completions import flat, line_of, load, two
from helpers.refusals import refuses

LIMIT = 1  # seconds for what hangs: a busy machine has begun the call by then

# --------------------------------------------------------------------------- async


def test_async_functions_run_together_after_the_others():
    order, met = [], []

    def plain(completions):
        order.append("plain")
        return [0.0] * len(completions)

    def meeting(name, value):
        async def f(completions):
            order.append(name)
            met.append(name)
            while len(met) < 2:  # the other one can only come if this one doesn't wait for its own end
                await asyncio.sleep(0.001)
            return [value] * len(completions)

        return f

    rewards = [Reward("one", meeting("one", 1.0)), Reward("plain", plain), Reward("two", meeting("two", 2.0))]
    (first, second) = score(two(), rewards, timeout=20)
    assert order == ["plain", "one", "two"]
    assert first.rewards.tolist() == [[1.0, 0.0, 2.0]] * 2
    assert second.rewards.tolist() == [[1.0, 0.0, 2.0]]


def test_all_calls_have_one_event_loop():
    """A thing that a function keeps open, such as a client with its connections, belongs to the loop it was opened in."""
    loops = []

    async def f(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    for _ in range(3):
        score(two(), [Reward("f", f), Reward("g", f)])
    assert len(loops) == 6
    assert len(set(map(id, loops))) == 1


def test_an_async_function_that_raises_names_its_line(write):
    path = write(
        "import asyncio\n\n\nasync def f(completions):\n    await asyncio.sleep(0)\n    raise TimeoutError('own')\n"
    )
    refuses(
        lambda: score(two(), load(f"{path}:f"), timeout=20),
        f"{path}:6: reward function `f` raised TimeoutError: own",
        "3 completions of t.jsonl:1, t.jsonl:2",
        kind=RewardError,
    )


def test_an_async_function_that_returns_too_few_is_refused():
    async def f(completions):
        return [1.0]

    refuses(
        lambda: score(two(), [Reward("f", f)]),
        f"{line_of(f)}: reward function `f` returned 1 rewards",
        kind=RewardError,
    )


def test_an_async_function_that_exits_does_not_end_the_run_unexplained():
    async def f(completions):
        raise SystemExit(3)

    refuses(
        lambda: score(two(), [Reward("f", f)]), "reward function `f` raised SystemExit: 3", kind=RewardError
    )


# --------------------------------------------------------------------------- what never comes back


def stuck(completions):
    while True:
        time.sleep(0.01)


def spinning(completions):
    n = 0
    while True:
        n += 1


def holding_on(completions):
    while True:
        with contextlib.suppress(Exception):  # as careless as users are
            time.sleep(10)


def in_a_regular_expression(completions):
    return [bool(re.match("(a*)*b", "a" * 40))]


def waiting_for_a_lock(completions):
    threading.Event().wait()


def with_an_alarm_of_its_own(completions):
    """As math-verify does; it takes the process's one alarm clock away."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(1)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    stuck(completions)


@pytest.mark.parametrize(
    "fn", [stuck, spinning, holding_on, in_a_regular_expression, waiting_for_a_lock, with_an_alarm_of_its_own]
)
def test_a_function_that_hangs_is_named_after_a_bounded_wait(fn):
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    refuses(
        lambda: score(two(), [Reward("f", fn)], timeout=LIMIT),
        f"{__file__}:",
        f"reward function `f` took longer than --reward_timeout {LIMIT} seconds",
        "(0: no limit)",
        "3 completions of t.jsonl:1, t.jsonl:2",
        kind=RewardError,
    )
    assert time.monotonic() - began < LIMIT + 10
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_function_that_catches_its_time_limit_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr("grpokit.rewards.calling.PATIENCE", 1)
    given_up = []

    def swallows(completions):
        while not given_up:
            with contextlib.suppress(BaseException):
                time.sleep(100)
        return [0.0] * len(completions)

    score(two(), [Reward("f", swallows)], timeout=LIMIT, stuck=given_up.append)
    assert "reward function `f` took longer than --reward_timeout" in str(given_up[0])


def test_a_function_of_verls_that_hangs_names_the_row(write):
    path = write(
        "import time\ndef f(solution_str, ground_truth):\n    if solution_str == 'c':\n        time.sleep(60)\n    return 0\n"
    )
    refuses(
        lambda: score(two(answer="4"), load(f"{path}:f"), timeout=LIMIT),
        f"{path}:4: reward function `f` took longer",
        "a completion of t.jsonl:2",
        kind=RewardError,
    )


async def never(completions):
    await asyncio.Event().wait()


async def never_lets_go(completions):
    time.sleep(60)


def test_an_async_function_that_hangs_is_named_and_not_the_one_beside_it():
    async def quick(completions):
        return [0.0] * len(completions)

    rewards = [Reward("quick", quick), Reward("never", never)]
    refuses(
        lambda: score(two(), rewards, timeout=LIMIT),
        f"{line_of(never)}: reward function `never` took longer than --reward_timeout {LIMIT} seconds",
        kind=RewardError,
    )
    assert flat(score(two(), rewards[:1], timeout=LIMIT)) == [0.0] * 3


def test_an_async_function_that_blocks_the_loop_is_interrupted(monkeypatch):
    monkeypatch.setattr("grpokit.rewards.calling.GRACE", 0.2)
    refuses(
        lambda: score(two(), [Reward("never_lets_go", never_lets_go)], timeout=LIMIT),
        "reward function `never_lets_go` took longer",
        kind=RewardError,
    )

    async def fine(completions):
        return [0.0] * len(completions)

    assert flat(score(two(), [Reward("fine", fine)], timeout=LIMIT)) == [0.0] * 3


def test_what_is_in_time_is_left_alone():
    def fine(completions):
        time.sleep(0.05)
        return [1.0] * len(completions)

    for timeout in (0.0, 5.0):
        assert flat(score(two(), [Reward("f", fine)], timeout=timeout)) == [1.0] * 3


def test_functions_stay_on_the_main_thread():
    """Signals work there only, and with them math-verify's own time-outs; so do connections opened at import."""
    seen = []

    def f(completions):
        seen.append(threading.current_thread() is threading.main_thread())
        return [0.0] * len(completions)

    score(two(), [Reward("f", f)], timeout=5)
    assert seen == [True]


def test_a_limit_on_another_thread_is_refused():
    caught = []

    def run():
        try:
            with time_limit(1.0):
                pass
        except ValueError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert caught == ["--reward_timeout 1: needs the main thread; use 0 (no limit) on another"]


def test_a_limit_of_many_rounds_leaves_nothing_behind():
    threads = threading.active_count()
    for _ in range(50):
        with time_limit(0.5):
            pass
    with pytest.raises(TimeOut), time_limit(0.01):
        time.sleep(5)
    assert threading.active_count() == threads
    time.sleep(0.05)  # no alarm comes after the block
