"""Reward functions of every signature: TRL's, verl's and ms-swift's."""

from __future__ import annotations

import sys

import pytest

from grpokit.rewards import RewardError, describe_rewards, score
from helpers.completions import flat, group, load, two
from helpers.refusals import refuses

# --------------------------------------------------------------------------- verl


VERL = """
calls = []

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    calls.append((data_source, solution_str, ground_truth, extra_info))
    return {"score": float(len(calls)), "acc": 1} if solution_str == "b" else float(len(calls))
"""


def test_verls_function_is_called_for_each_completion(write):
    rewards = load(f"{write(VERL)}:compute_score", columns=["data_source", "ground_truth", "extra_info"])
    assert describe_rewards(rewards) == "rewards: compute_score (verl's, called for each completion)"
    groups = two(data_source="gsm8k", ground_truth="4", extra_info={"index": 1})
    assert flat(score(groups, rewards)) == [1.0, 2.0, 3.0]
    calls = rewards[0].fn.__wrapped__.__globals__["calls"]
    assert calls == [("gsm8k", text, "4", {"index": 1}) for text in "abc"]


def test_verls_function_takes_the_answer_column_that_there_is(write):
    path = write(
        "def f(solution_str, ground_truth, scale=2.0, **kwargs):\n    return scale * (solution_str == ground_truth)\n"
    )
    assert flat(score(two(answer="b"), load(f"{path}:f", columns=["answer"]))) == [0.0, 2.0, 0.0]
    named = load(f"{path}:f", columns=["key", "answer"], answer_column="key")
    assert flat(score(two(key="c", answer="b"), named)) == [0.0, 0.0, 2.0]
    refuses(lambda: load(f"{path}:f", columns=["level"]), "no column answer, solution, ground_truth")


def test_verls_function_is_not_asked_where_there_is_no_reference(write):
    path = write("def f(solution_str, ground_truth):\n    return 1.0 / (ground_truth == '4')\n")
    groups = [group("a", answer=None), group("b", answer="4")]
    first, second = score(groups, load(f"{path}:f"))
    assert first.reward.isnan().tolist() == [True]
    assert second.reward.tolist() == [1.0]


def test_verls_function_that_asks_for_what_there_is_not(write):
    path = write("def f(data_source, solution_str, ground_truth): ...\n")
    refuses(lambda: load(f"{path}:f"), f"{path}:1: reward function `f` requires `data_source`")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (
            "return {'acc': 1.0}",
            "raised TypeError: returned {'acc': 1.0}; expected a number or a dict with `score`",
        ),
        ("raise KeyError(solution_str)", "raised KeyError: 'c'"),
    ],
)
def test_a_failure_of_verls_function_names_the_row(write, body, what):
    path = write(
        f"def f(solution_str, ground_truth):\n    if solution_str == 'c':\n        {body}\n    return 0\n"
    )
    rewards = load(f"{path}:f")
    refuses(
        lambda: score(two(answer="4"), rewards),
        "reward function `f` " + what,
        "a completion of t.jsonl:2",
        kind=RewardError,
    )
    path = write(
        f"async def g(solution_str, ground_truth):\n    if solution_str == 'c':\n        {body}\n    return 0\n"
    )
    rewards = load(f"{path}:g")
    refuses(
        lambda: score(two(answer="4"), rewards),
        "reward function `g` " + what,
        "a completion of t.jsonl:2",
        kind=RewardError,
    )


# --------------------------------------------------------------------------- ms-swift


SWIFT = """
class ORM:
    def __init__(self, **kwargs): ...
    def __call__(self, **kwargs): raise NotImplementedError

class Right(ORM):
    def __call__(self, completions, solution, **kwargs):
        assert kwargs.keys() >= {"prompts", "completion_ids"}
        return [float(c == s) for c, s in zip(completions, solution)]

class Alone:
    def __call__(self, completions):
        return [c == "a" for c in completions]

class Asked(ORM):
    def __init__(self, args): ...
    def __call__(self, completions): ...

class Slow(ORM):
    async def __call__(self, completions, solution, **kwargs):
        return [float(c == s) for c, s in zip(completions, solution)]

right = Right()
"""


@pytest.mark.parametrize("name", ["Right", "right", "Slow"])
def test_ms_swifts_classes_and_objects_get_texts(write, name):
    rewards = load(f"{write(SWIFT)}:{name}", columns=["solution"])
    assert flat(score(two(solution="b"), rewards)) == [0.0, 1.0, 0.0]
    assert "(ms-swift's, completions as text" in describe_rewards(rewards)


def test_a_class_of_nobodys_is_made_too(write):
    """TRL has no classes: a class is meant as ms-swift means it."""
    assert flat(score(two(), load(f"{write(SWIFT)}:Alone"))) == [1.0, 0.0, 0.0]


def test_a_class_that_cannot_be_made_or_called_is_refused(write):
    path = write(SWIFT)
    refuses(
        lambda: load(f"{path}:Asked"),
        "TypeError",
        "missing 1 required",
        f"--reward_funcs {path}:Asked without arguments",
    )
    refuses(
        lambda: load("fractions:Fraction"), "a ABCMeta; expected a function f(completions, ...), or a class"
    )


def test_a_failure_of_an_adapted_function_names_its_own_line(write):
    path = write("class F:\n    def __call__(self, completions):\n        return 1 / 0\n")
    refuses(
        lambda: score(two(), load(f"{path}:F")),
        f"{path}:3: reward function `F` raised ZeroDivisionError",
        kind=RewardError,
    )


def test_trls_callable_object_gets_messages(write):
    path = write(
        "class F:\n    def __call__(self, completions):\n        return [c[0] != c for c in completions]\nf = F()\n"
    )
    rewards = load(f"{path}:f")
    assert describe_rewards(rewards) == "rewards: f (TRL's signature)"
    assert flat(score(two(), rewards)) == [1.0, 1.0, 0.0]


def test_the_line_at_the_start_has_all_of_them(write):
    path = write("async def later(completions): ...\n")
    rewards = load("length", f"{path}:later", weights=(0.5, 1))
    assert describe_rewards(rewards) == "rewards: length (built in) × 0.5, later (TRL's signature, async)"


POOL = """
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

from pool_neighbour import OFFSET


class Judge:
    def __init__(self, factor):
        self.factor = factor


def work(judge, text):
    return judge.factor * len(text) + OFFSET


def judged(completions):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, [Judge(2.0)] * len(completions), completions))


def elsewhere(completions):
    code = f"import {work.__module__} as module; print(module.work(module.Judge(2.0), 'abc'))"
    return [float(subprocess.check_output([sys.executable, "-c", code]))] * len(completions)
"""


@pytest.mark.parametrize("name", ["judged", "elsewhere"])
def test_a_file_with_a_pool_of_spawned_processes(write, monkeypatch, name):
    """What a pool sends to its workers is found there by its module's name, with its neighbours."""
    path = write(POOL)
    neighbour = path.with_name("pool_neighbour.py")
    neighbour.write_text("OFFSET = 1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(path.parent))
    (done,) = score([group("a", "abc")], load(f"{path}:{name}"))
    assert done.reward.tolist() == ([3.0, 7.0] if name == "judged" else [7.0, 7.0])
