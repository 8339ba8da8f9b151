"""The reward `accuracy`: what counts as equal, and that no answer can stop a run, nor a worker outlive it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpokit.rewards import RewardError, math_worker, score
from grpokit.rewards.accuracy import TAIL, MathPool, answer_part, math_pool
from helpers.completions import group, load
from helpers.refusals import refuses

pytest.importorskip("math_verify", reason="math-verify (the extra `math`) isn't installed")

SECONDS = 1.5  # for a hostile answer, in these tests: it would take for ever


@pytest.fixture(scope="module")
def pool():
    pool = MathPool(2, 20.0)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def hasty():
    pool = MathPool(2, SECONDS)
    yield pool
    pool.close()


@pytest.fixture(scope="module", autouse=True)
def _close_the_runs_pool():
    yield
    math_pool().close()


# --------------------------------------------------------------------------- what is equal

EQUAL = [
    ("42", r"so it is \boxed{42}."),
    ("42", "The answer is 42."),
    ("42", "The answer is $42$. I checked it 3 times."),
    ("42", "Let $x = 3$. Then there are 42"),
    ("42", r"\boxed{41} no, \boxed{42}"),
    ("42", r"\[ 6 \cdot 7 = 42 \]"),
    (r"\boxed{7}", "7"),
    (r"\frac{1}{3}", r"\boxed{1/3}"),
    ("0.5", r"\boxed{\frac{1}{2}}"),
    ("1,234", "that makes 1234 in all"),
    ("$18", "$18 dollars"),
    ("-3", "x = -3"),
    ("12", "pages 3-12"),
    ("50%", r"\boxed{50\%}"),
    ("x^2 + 1", r"\boxed{1 + x^2}"),
    (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"),
    ("A", r"\boxed{A}"),
    ("x = 5", r"\boxed{5}"),
    ("first 70, then 2 more\n#### 72", "it is 72"),
    ("3.", "3"),
]
DIFFERENT = [
    ("42", r"\boxed{41}"),
    ("42", "42 or 43"),
    ("3", "1/3"),
    ("42", ""),
    ("42", "forty-two"),
    ("42", r"it is 42, that is \boxed{7}"),
    ("-3", "3"),
    ("7", r"\boxed{"),
]


def test_what_is_equal_and_what_is_not(pool):
    assert dict(zip(EQUAL, pool.compare(EQUAL), strict=True)) == dict.fromkeys(EQUAL, 1.0)
    assert dict(zip(DIFFERENT, pool.compare(DIFFERENT), strict=True)) == dict.fromkeys(DIFFERENT, 0.0)


def test_a_reference_that_is_no_mathematics_does_not_apply(pool):
    assert pool.compare([("Paris", "Paris"), ("", "1"), ("Paris", r"\boxed{Paris}")]) == [None] * 3


def test_scores_are_in_the_order_of_the_answers(pool):
    pairs = [(str(n), rf"\boxed{{{n if n % 3 else n + 1}}}") for n in range(60)]
    assert pool.compare(pairs) == [float(n % 3 != 0) for n in range(60)]
    assert pool.compare([]) == []


def test_accuracy_is_loaded_and_scored_as_a_reward():
    rewards = load("accuracy", columns=["solution"])
    chat = group("so 4", r"\boxed{5}", content=[{"role": "user", "content": "2 + 2"}], solution=4)
    first, second = score([chat, group("x", solution=None)], rewards)
    assert first.reward.tolist() == [1.0, 0.0]
    assert second.reward.isnan().tolist() == [True]


def test_any_reference_of_a_list_is_right():
    groups = [group("so 1/2", "so 3", "so 4", answer=["3", 0.5, None]), group("x", answer=[])]
    first, second = score(groups, load("accuracy"))
    assert first.reward.tolist() == [1.0, 1.0, 0.0]
    assert second.reward.isnan().tolist() == [True]


def test_it_looks_for_its_column_and_refuses_a_reference_of_another_kind():
    refuses(
        lambda: load("accuracy", columns=["level"]), "--reward_funcs accuracy: no column answer, solution"
    )
    refuses(
        lambda: score([group("4", answer={"a": "4"})], load("accuracy")),
        "reward function `accuracy` raised TypeError: the reference {'a': '4'} is a dict",
        kind=RewardError,
    )


def test_without_math_verify_it_says_how_to_install_it(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuses(lambda: load("accuracy"), "--reward_funcs accuracy: ", "pip install grpokit[math]", "exact_match")


def test_nothing_that_came_from_a_model_is_evaluated(monkeypatch):
    """sympy's parse_expr runs what it makes of a text as Python, and math-verify goes through it for numbers."""

    from sympy.parsing import sympy_parser

    class Evaluated(BaseException):
        pass

    def refuse(*args):
        raise Evaluated(args[0])

    code = "__import__('os').system('true') + 1/2"
    hostile = [
        code,
        f"${code}$",
        rf"\boxed{{{code}}}",
        f"answer: {code}",
        rf"$\mathrm{{{code}}}$",
        "1/2 + (3)",
    ]
    math_worker.extract("$1$", True)  # whatever is imported at its first use
    monkeypatch.setattr(sympy_parser, "eval_expr", math_worker.number_of)  # as in a worker
    monkeypatch.setattr("builtins.eval", refuse)
    for text in [text for pair in EQUAL + DIFFERENT for text in pair] + hostile:
        for is_reference in (True, False):
            math_worker.extract(text, is_reference)
    assert float(math_worker.extract("0.25", True)[0]) == 0.25
    monkeypatch.undo()
    monkeypatch.setattr("builtins.eval", refuse)
    with pytest.raises(Evaluated):  # what a worker is kept from
        math_worker.extract("1234567", True)


WATCHED = """
import builtins, os, runpy, sys
real = builtins.eval
def watched(code, *namespaces):
    if isinstance(code, str) and code.startswith("Integer"):
        os._exit(9)
    return real(code, *namespaces)
builtins.eval = watched
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_a_worker_evaluates_nothing():
    """The real one, from its first line on, with an `eval` that ends the process where it's asked for a number."""
    request = {"reference": "1234567", "answer": "it is 1234567", "seconds": 60}
    command = [sys.executable, "-c", WATCHED, math_worker.__file__, str(os.getpid())]
    done = subprocess.run(
        command, input=json.dumps(request) + "\n", capture_output=True, text=True, timeout=120
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, replies) == (0, [{"ready": True}, {"reference": True}, {"score": 1.0}])


@pytest.mark.parametrize(
    "code", ["Symbol ('x' )", "Integer (open('x') )", "Integer (4 )+1", "print", "1", "(", ""]
)
def test_what_is_not_a_number_is_not_made(code):
    with pytest.raises((ValueError, SyntaxError)):
        math_worker.number_of(code, {}, {})


# --------------------------------------------------------------------------- hostile answers

HOSTILE = {
    "ten megabytes": "1" * 10_000_000,
    "ten megabytes of dollars": "$" * 10_000_000,
    "ten megabytes of boxes": r"\boxed{" * 1_500_000,
    "a tower": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "a tower in plain text": "9^9^9^9^9",
    "a tower of twos": "$" + "2^{" * 60 + "2" + "}" * 60 + "$",
    "a factorial": r"\boxed{1000000000!}",
    "a power modulo": r"$123456789^{987654321987654321} \mod 7$",
    "fractions in fractions": r"\boxed{" + r"\frac{1}{" * 400 + "1" + "}" * 401,
    "brackets in brackets": "$" + "(" * 2900 + "$",
    "a chain of equations": "$" + "=".join(["x"] * 1000) + "$",
    "a long sum": r"$\sum_{i=1}^{10^{12}} i^{i}$",
    "a long product": "$" + "9" * 1400 + "*" + "9" * 1400 + "$",
    "a polynomial": "$(x + y + z + w)^{300}$",
    "much that begins": "answer: $1$ and $2$ or " * 130,
    "half a pair": "\ud800 $1$",
    "nothing": "\0" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_scores_0_in_a_bounded_time(hasty, name):
    began = time.monotonic()
    scores = hasty.compare([("7", HOSTILE[name]), ("7", r"\boxed{7}")])
    assert scores == [0.0, 1.0]
    assert time.monotonic() - began < SECONDS + 12  # the rest is a worker's start, on a busy machine


def test_ten_megabytes_are_cut_before_they_go_anywhere():
    assert answer_part("1" * 10_000_000 + " is 7") == "1" * (TAIL - 5) + " is 7"
    assert answer_part(r"\boxed{1}" + "2" * TAIL) == "2" * TAIL
    assert answer_part(r"\boxed{1} or \boxed{2} dogs") == r"\boxed{2}"


def test_answers_that_were_given_up_are_counted_and_said(caplog):
    pool = MathPool(2, SECONDS)
    try:
        with caplog.at_level(logging.WARNING):
            assert pool.compare([("7", HOSTILE["a tower"]), ("7", "7")]) == [0.0, 1.0]
            assert pool.compare([("7", "7")]) == [1.0]
            pool.compare([("7", HOSTILE["a tower"])])
            pool.compare([("7", HOSTILE["a tower"])])
    finally:
        pool.close()
    assert pool.stopped == 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2  # at the first and at twice as many
    assert "accuracy gave up 1 of 2 answers" in said[0]
    assert "(1 in this process so far)" in said[0]
    assert "(2 in this process so far)" in said[1]


def test_a_hostile_reference_does_not_apply(hasty):
    hostile = HOSTILE["fractions in fractions"]
    assert hasty.compare([(hostile, "7"), ("7", "7")]) == [None, 1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="address space is only limited on Linux")
def test_memory_is_bounded(pool):
    """A worker that takes more than its share fails by itself, long before the machine does."""
    pool.compare([("1", "1")])
    limits = Path(f"/proc/{pool._workers[0].process.pid}/limits").read_text()
    assert re.search(rf"Max address space +{math_worker.MEMORY} +{math_worker.MEMORY} ", limits)


# --------------------------------------------------------------------------- the workers


def test_a_worker_that_dies_is_replaced(pool):
    pool.compare([("1", "1"), ("2", "2")])
    for worker in pool._workers:
        worker.process.kill()
        worker.process.wait()
    assert pool.compare([("1", "1"), ("2", "2"), ("3", "4")]) == [1.0, 1.0, 0.0]


def test_an_interrupted_comparison_leaves_no_reply_behind(pool, monkeypatch):
    """The next question's answer must not be the last one's."""
    pool.compare([("1", "1")])
    real = MathPool._wait

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(MathPool, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.compare([("1", "1")] * 4)
    monkeypatch.setattr(MathPool, "_wait", real)
    assert pool.compare([("1", "2"), ("1", "3")]) == [0.0, 0.0]


def test_workers_ignore_ctrl_c(pool):
    pool.compare([("1", "1"), ("2", "2")])
    pids = [worker.process.pid for worker in pool._workers]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert pool.compare([("1", "1"), ("2", "3")]) == [1.0, 0.0]
    assert [worker.process.pid for worker in pool._workers] == pids


PARENT = """
import os, sys, time
from grpokit.rewards.accuracy import MathPool
pool = MathPool(2, 3.0)
pool.compare([("1", "1"), ("2", "2")])
print(*(worker.process.pid for worker in pool._workers), flush=True)
if sys.argv[1] == "busy":
    pool.compare([("7", "$9^{9^{9^{9}}}$")] * 2)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_die_with_their_parent(state):
    """By SIGKILL, which nobody can tell them of; also in the midst of an answer."""
    with subprocess.Popen([sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        time.sleep(0.5)
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 15
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_cannot_start_is_named(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no antlr')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = MathPool(1)
    with pytest.raises(
        RuntimeError, match=r"math-verify cannot be imported: ImportError: no antlr; pip install"
    ):
        pool.compare([("1", "1")])
    assert pool._workers == []
