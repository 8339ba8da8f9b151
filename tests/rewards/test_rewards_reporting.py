"""TRL's further arguments: what functions read of the run, and what they log with a step."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from grpokit.parallel import ALONE
from grpokit.rewards import (
    Report,
    Reward,
    RewardError,
    TrainerState,
    describe_rewards,
    reward_metrics,
    score,
)
from grpokit.rollouts.gather import groups_from_tensors, groups_to_tensors
from grpokit.runs.completions import group_record
from grpokit.runs.metrics import is_taken
from grpokit.types import RolloutGroup
from helpers.completions import group, load, two
from helpers.refusals import refuses


def logged(*functions, groups=None, report=None) -> tuple[list[RolloutGroup], Report]:
    report = report or Report(TrainerState(3, 10), is_taken)
    rewards = [Reward(f"f{i}", fn) for i, fn in enumerate(functions)]
    return score(groups or two(), rewards, report=report), report


def test_a_function_that_was_written_for_trl_works_as_it_is():
    """The example of TRL's docs (docs/source/rewards.md), with its curriculum."""

    def reward(completions, answer, log_extra=None, log_metric=None, trainer_state=None, **kwargs):
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        right = [text == wanted for text, wanted in zip(texts, answer, strict=True)]
        if log_extra:
            log_extra("golden", answer)
        if log_metric:
            log_metric("accuracy", sum(right) / len(right))
        progress = trainer_state.global_step / trainer_state.max_steps
        return [progress * each for each in right]

    async def later(completions, **kwargs):
        kwargs["log_metric"]("accuracy", 1.0)
        return [0.0] * len(completions)

    (first, second), report = logged(reward, later, groups=two(answer="a"))
    assert first.rewards[:, 0].tolist() == [0.3, 0.0]
    assert (first.extras, second.extras) == ({"golden": ["a", "a"]}, {"golden": ["a"]})
    assert report.metrics["accuracy"].value == pytest.approx((1 / 3 + 1) / 2)  # two calls of 3 completions
    assert group_record(0, first, [])["extras"] == {"golden": ["a", "a"]}
    assert (TrainerState().epoch, TrainerState().log_history) == (None, [])


def test_kinds_of_functions_and_values():
    class Orm:
        def __call__(self, completions, **kwargs):
            kwargs["log_metric"]("turns", np.float32(2))
            return [0.0] * len(completions)

    def compute_score(solution_str, log_metric, trainer_state):
        log_metric("length", len(solution_str))
        return float(trainer_state.global_step)

    def by_place(completions, log_extra, log_count, trainer_state, /):
        trainer_state.log_history.append({})  # its own list
        log_count("seen", len(completions))
        log_extra("kinds", [torch.tensor(1), math.inf, {"a": 1}])
        return [len(trainer_state.log_history)] * len(completions)

    rewards = load("python:f", columns=(), functions={"python:f": compute_score})
    (first, second) = score(two(), rewards, report=Report(TrainerState(3, 10)))
    assert first.reward.tolist() == [3.0, 3.0]
    (first, second), report = logged(Orm(), by_place, Orm())
    assert (first.extras["kinds"], second.extras["kinds"]) == ([1, "inf"], ["{'a': 1}"])
    assert report.metrics["seen"].value == 3
    assert first.rewards[0].tolist() == [0.0, 1.0, 0.0]


def test_ranks_and_rounds_join_the_calls():
    def reward(completions, log_metric, log_count):
        log_metric("m", len(completions))
        log_count("n", len(completions))
        return [0.0] * len(completions)

    parts = [logged(reward, groups=[g])[1].metrics for g in two()]
    joined = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert joined["m"].value == pytest.approx((2 * 2 + 1 * 1) / 3)  # calls of 2 and of 1 completions
    assert joined["n"].value == 3
    assert ALONE.join_metrics(parts[0]) == parts[0]


def test_a_mean_that_is_logged_agrees_with_the_reward_in_calls_of_any_size():
    def reward(completions, log_metric):
        rewards = [float(text in "ac") for text in completions]
        log_metric("m", sum(rewards) / len(rewards))
        return rewards

    groups = [group("a", "b", "b", "b"), group("c", line=2)]
    for by_group in (False, True):
        report = Report()
        done = score(groups, [Reward("f", reward)], report=report, by_group=by_group)
        assert report.metrics["m"].value == pytest.approx(2 / 5)
        assert reward_metrics(done, [Reward("f", reward)])["reward"].value == pytest.approx(2 / 5)


def test_extras_travel_with_their_completions():
    (first, second), _ = logged(lambda completions, log_extra: log_extra("é", "xyz") or [0.0] * 3)
    prompts = {0: first.prompt}
    for sent in ([first, second], [second]):
        back = groups_from_tensors(groups_to_tensors(sent), prompts.__getitem__)
        assert [g.extras for g in back] == [g.extras for g in sent]
        assert json.dumps(back[0].extras) == json.dumps(sent[0].extras)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda n: n["log_metric"]("kl", 1.0), ["log_metric('kl', ...): is one of the run's own"]),
        (lambda n: n["log_metric"]("eval/x", 1.0), ["is one of the run's own metrics; rename it"]),
        (lambda n: n["log_metric"]("x", math.inf), ["log_metric('x', inf): expected a finite number"]),
        (lambda n: n["log_metric"]("x", "1"), ["log_metric('x', '1'): expected a finite number"]),
        (
            lambda n: n["log_extra"]("x", [1]),
            ["logged 1 values as 'x'; expected 3", "reward function `f0`"],
        ),
        (
            lambda n: [n["log_metric"]("x", 1), n["log_count"]("x", 1)],
            ["logged 'x' by log_metric and by log_count"],
        ),
    ],
)
def test_what_cannot_be_logged_names_the_function(call, parts):
    def reward(completions, log_metric, log_extra, log_count):
        call({"log_metric": log_metric, "log_extra": log_extra, "log_count": log_count})
        return [0.0] * len(completions)

    refuses(lambda: logged(reward), *parts, kind=RewardError)


def test_nan_is_left_out_and_a_column_has_one_function():
    def reward(completions, log_metric, log_extra):
        log_metric("x", math.nan)
        log_extra("c", completions)
        return [0.0] * len(completions)

    assert logged(reward)[1].metrics == {}
    refuses(
        lambda: logged(reward, reward),
        "`f1` logged 'c', as another function has of the same rows",
        kind=RewardError,
    )
    refuses(lambda: load("length", columns=("log_extra",)), "--dataset: rewards get the run's `log_extra`")


# --------------------------------------------------------------------------- routes


def test_a_function_is_called_with_its_rows_alone():
    seen = {}

    def of(name):
        def f(completions, answer, **kwargs):
            seen[name] = (completions, answer)
            kwargs["log_extra"](name, completions)
            return [1.0] * len(completions)

        return f

    functions = {f"python:{name}": of(name) for name in ("math", "code", "all", "none")}
    groups = [
        group("a", "b", data_source="org/gsm8k", answer=1),
        group("c", line=2, data_source="code", answer=2),
        group("d", line=3, answer=3),
    ]
    routes = ("data_source", "org/gsm8k=math", "code=code,math", "3=none")
    columns = ("answer", "data_source")
    rewards = load(
        *functions, columns=columns, functions=functions, reward_routes=routes, weights=(1, 2, 4, 8)
    )
    assert "math (TRL's signature) for data_source code or org/gsm8k, code" in describe_rewards(rewards)
    done = score(groups, rewards)
    assert seen == {
        "math": (["a", "b", "c"], [1, 1, 2]),
        "code": (["c"], [2]),
        "all": (["a", "b", "c", "d"], [1, 1, 2, 3]),
    }
    assert [g.reward.tolist() for g in done] == [[5.0, 5.0], [7.0], [4.0]]
    assert done[0].rewards.isnan().tolist() == [[False, True, False, True]] * 2
    assert (done[0].extras["code"], done[1].extras["code"]) == ([None, None], ["c"])


@pytest.mark.parametrize("by_group", [False, True])
def test_functions_with_different_routes_may_log_the_same_column(by_group):
    def of(name):
        def f(completions, **kwargs):
            kwargs["log_extra"]("parsed", [f"{name} {text}" for text in completions])
            return [1.0] * len(completions)

        return f

    functions = {f"python:{name}": of(name) for name in ("math", "code")}
    groups = [group("a", "b", kind="m"), group("c", line=2, kind="c"), group("d", line=3, kind="other")]

    def scored_by(*routes):
        rewards = load(*functions, columns=("kind",), functions=functions, reward_routes=("kind", *routes))
        return [g.extras.get("parsed") for g in score(groups, rewards, by_group=by_group)]

    found = scored_by("m=math", "c=code")
    assert found[:2] == [["math a", "math b"], ["code c"]]
    assert found[2] in (None, [None])
    said = "`code` logged 'parsed', as another function has of the same rows"
    refuses(lambda: scored_by("m=math", "c=code,math"), said, kind=RewardError)


@pytest.mark.parametrize(
    ("routes", "parts"),
    [
        (("length=x",), ["--reward_routes length=x: expected a column and value=name,name"]),
        (("level",), ["--reward_routes level: expected a column"]),
        (("level", "length"), ["'length': expected a column and value=name"]),
        (("levle", "1=length"), ["--reward_routes levle: no such column (did you mean 'level'?)"]),
        (("level", "1=lenght"), ["--reward_routes lenght: no such function", "did you mean 'length'?"]),
        (("level", "1=length", "1=format"), ["'1' is there twice; join its functions: 1=name,name"]),
    ],
)
def test_routes_that_lead_nowhere_are_refused(routes, parts):
    refuses(lambda: load("length", "format", columns=("level",), reward_routes=routes), *parts)


def test_an_error_names_the_rows_of_its_route():
    def fails(completions):
        raise KeyError("x")

    rewards = load(
        "python:fails", functions={"python:fails": fails}, columns=("k",), reward_routes=("k", "2=fails")
    )
    groups = [group("a", k=1), group("b", line=2, k=2)]
    refuses(lambda: score(groups, rewards), "1 completions of t.jsonl:2)", kind=RewardError)
