"""The answers of reward functions: which are refused, how they add up, and the metrics over them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from grpokit.rewards import Reward, RewardError, reward_metrics, score
from helpers.completions import NAN, TWO, call, group, line_of, load, scored
from helpers.refusals import refuses

# --------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0.5, None],
        (1.0, 0.5, None),
        [True, np.float32(0.5), None],
        [torch.tensor(1.0), torch.tensor(0.5, requires_grad=True), None],
        [np.bool_(True), np.array(0.5), None],
    ],
)
def test_what_counts_as_rewards(returned):
    first, second = score(TWO, [Reward("f", lambda completions: returned)])
    assert first.rewards.tolist() == [[1.0], [0.5]]
    assert second.rewards.isnan().tolist() == [[True]]


@pytest.mark.parametrize(
    "returned",
    [
        np.array([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        torch.ones(3).cumsum(0).requires_grad_(),
    ],
)
def test_arrays_count_as_rewards(returned):
    first, second = score(TWO, [Reward("f", lambda completions: returned)])
    assert (first.reward.tolist(), second.reward.tolist()) == ([1.0, 2.0], [3.0])


def test_rewards_and_their_weighted_sum():
    table = torch.tensor([[1.0, 10.0], [NAN, 20.0], [NAN, NAN]], dtype=torch.float64)
    columns = [[None if math.isnan(x) else x for x in column] for column in table.T.tolist()]
    rewards = [
        Reward("f", lambda completions: columns[0], 2.0),
        Reward("g", lambda completions: columns[1], -0.5),
    ]
    first, second = score(TWO, rewards)
    assert torch.equal(torch.cat([first.rewards, second.rewards]).nan_to_num(7.0), table.nan_to_num(7.0))
    assert first.reward.tolist() == [2.0 - 5.0, -10.0]  # 2·1 − 0.5·10; −0.5·20
    assert second.reward.isnan().tolist() == [True]
    assert {t.dtype for t in (first.rewards, first.reward)} == {torch.float64}
    assert [g.prompt for g in (first, second)] == [g.prompt for g in TWO]
    assert TWO[0].rewards is None


def test_equal_rewards_have_exactly_equal_sums():
    """A group that says nothing must be exactly equal, whatever its place in the batch."""
    values = [0.1, 0.7, 1 / 3]
    rewards = [
        Reward(str(v), lambda completions, v=v: [v] * len(completions), w)
        for v, w in zip(values, [0.3, 1.7, 0.9], strict=True)
    ]
    done = score([group(*"abcdefghijk"), group(*"abc")], rewards)
    assert len(set(torch.cat([g.reward for g in done]).tolist())) == 1


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        (lambda n: [1.0] * (n - 1), ["returned 2 rewards", "expected a list of 3, one number or None"]),
        (lambda n: [], ["returned 0 rewards"]),
        (lambda n: np.ones(4), ["returned 4 rewards"]),
        (lambda n: np.ones((3, 1)), ["returned an array of shape (3, 1)", "expected a list of 3"]),
        (lambda n: torch.tensor(1.0), ["returned an array of shape ()"]),
        (lambda n: None, ["returned None, a NoneType", "expected a list of 3"]),
        (lambda n: 1.0, ["returned 1.0, a float"]),
        (lambda n: "abc", ["returned 'abc', a str"]),
        (lambda n: dict.fromkeys(range(n), 1.0), ["a dict; expected a list of 3"]),
        (lambda n: (1.0 for _ in range(n)), ["a generator; expected a list of 3"]),
    ],
)
def test_a_return_value_of_the_wrong_shape_is_refused(returned, parts):
    def fn(completions):
        return returned(len(completions))

    where = f"{line_of(fn)}: reward function `f` {parts[0]}" if parts[0].startswith("ret") else parts[0]
    refuses(lambda: call(fn), where, "reward function `f`", *parts, kind=RewardError)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("1.0", "'1.0'"),
        (NAN, "nan"),
        (math.inf, "inf"),
        (np.float64("-inf"), "-inf"),
        (torch.tensor(NAN), "nan"),
        (np.str_("x"), "x"),
        ([1.0, 2.0], "[1.0, 2.0]"),
        (torch.ones(2), "tensor([1., 1.])"),
        (1j, "1j"),
        (10**400, "1000"),
        ({}, "{}"),
    ],
)
def test_an_element_that_is_no_number_names_row_and_completion(value, shown):
    def fn(completions):
        return [0.0, 1.0, value]

    refuses(
        lambda: call(fn),
        f"{line_of(fn)}: reward function `f` returned ",
        shown,
        "for a completion of t.jsonl:2, 'c'",
        "expected a finite number, or None where it doesn't apply",
        kind=RewardError,
    )


# --------------------------------------------------------------------------- a function that raises


def test_a_function_that_raises_names_its_own_line(write):
    path = write("import json\n\n\ndef f(completions):\n    return [json.loads(c) for c in completions]\n")
    error = refuses(
        lambda: score(TWO, load(f"{path}:f")),
        f"{path}:5: reward function `f` raised JSONDecodeError: Expecting value",
        "3 completions of t.jsonl:1, t.jsonl:2",
        kind=RewardError,
    )
    assert error.__cause__.__traceback__.tb_next is not None
    assert "/json/" in _last_file(error.__cause__)  # the whole traceback is kept for error.txt


def _last_file(error: BaseException) -> str:
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    return frame.tb_frame.f_code.co_filename


def test_the_deepest_line_of_the_file_is_named(write):
    path = write(
        "def g(x):\n    return x['k']\n\n\ndef f(completions):\n    return [g({}) for _ in completions]\n"
    )
    refuses(lambda: score(TWO, load(f"{path}:f")), f"{path}:2: reward", "KeyError: 'k'", kind=RewardError)


def test_a_decorated_function_names_its_own_line(write):
    path = write(
        "import functools\n\n\ndef f(completions, *, k):\n    raise OSError('two\\nlines')\n\n\n"
        "f = functools.partial(f, k=1)\n"
    )
    refuses(
        lambda: score(TWO, load(f"{path}:f")), f"{path}:5: reward", "OSError: two lines", kind=RewardError
    )


def test_a_syntax_error_in_a_completion_is_not_taken_for_the_files(write):
    path = write("import ast\n\n\ndef f(completions):\n    return [ast.parse('1 +') for _ in completions]\n")
    refuses(lambda: score(TWO, load(f"{path}:f")), f"{path}:5: reward", "SyntaxError", kind=RewardError)


def test_many_rows_are_not_all_named():
    groups = [group("a", line=line) for line in range(1, 9)]
    refuses(
        lambda: score(groups, [Reward("f", lambda completions: 1 / 0)]),
        f"{__file__}:",
        "t.jsonl:1, t.jsonl:2, t.jsonl:3 and 5 more rows",
        kind=RewardError,
    )


def test_a_function_that_is_not_python_is_named():
    class Parameters:
        __signature__ = __import__("inspect").signature(lambda completions: None)
        __call__ = len

    refuses(lambda: call(Parameters()), "reward function `f` raised TypeError", kind=RewardError)


def test_a_column_that_only_training_data_had_is_named():
    """An evaluation set may lack a column; its name comes before any call."""

    def fn(completions, answer):
        return [0.0]

    refuses(
        lambda: call(fn, [group("a", level=1)]),
        f"{line_of(fn)}: reward function `f` requires `answer`",
        "level",
    )


def test_an_interrupt_passes_through():
    def fn(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(fn)


# --------------------------------------------------------------------------- metrics


F = [Reward("f", len)]


def value_of(groups, name: str, rewards=F) -> float:
    return reward_metrics(groups, rewards)[name].value


def test_metrics_by_hand():
    groups = scored([1.0, 0.0, 0.0, 1.0], [2.0, 2.0], [None, 4.0], [None])
    # means of (1 0 0 1 2 2 4); stds of the first two groups √(1/3) and 0, one reward or none has no std
    assert value_of(groups, "reward") == pytest.approx(10 / 7)
    assert value_of(groups, "reward_std") == pytest.approx(math.sqrt(1 / 3) / 2)
    assert value_of(groups, "frac_reward_zero_std") == pytest.approx(
        2 / 3
    )  # (2 2) and (4), of three with a reward
    assert value_of(groups, "reward/unscored") == pytest.approx(2 / 9)
    assert value_of(groups, "rewards/f/mean") == pytest.approx(10 / 7)
    # unbiased over all seven: Σx² = 26, (26 − 100/7) / 6
    assert value_of(groups, "rewards/f/std") == pytest.approx(math.sqrt((26 - 100 / 7) / 6))


def test_metrics_of_each_function_are_over_where_it_applies():
    rewards = [
        Reward("f", lambda completions: [1.0, 3.0, None], 10.0),
        Reward("g", lambda completions: [None, None, 5.0], 1.0),
    ]
    groups = score(TWO, rewards)
    assert value_of(groups, "rewards/f/mean", rewards) == 2.0
    assert value_of(groups, "rewards/f/std", rewards) == pytest.approx(math.sqrt(2))
    assert value_of(groups, "rewards/g/mean", rewards) == 5.0
    assert value_of(groups, "reward", rewards) == pytest.approx((10 + 30 + 5) / 3)


def test_metrics_join_over_slices():
    groups = scored([1.0, 0.5, 0.0], [2.0, 2.0], [None, 4.0, 0.3], [0.1] * 7)
    whole, first, second = (reward_metrics(part, F) for part in (groups, groups[:1], groups[1:]))
    by_function = {"rewards/f/mean", "rewards/f/std"}
    assert set(whole) == {"reward", "reward_std", "reward/unscored", "frac_reward_zero_std", *by_function}
    for name in whole:
        assert (first[name] + second[name]).value == pytest.approx(whole[name].value, rel=1e-12)


def test_equal_rewards_have_no_std_at_all():
    groups = scored([0.1] * 7)
    assert value_of(groups, "reward_std") == 0.0
    assert value_of(groups, "frac_reward_zero_std") == 1.0


def test_metrics_without_any_reward_are_nan():
    for groups in (scored([None, None]), [], [group("a")]):
        metrics = reward_metrics(groups, F)
        unscored = metrics.pop("reward/unscored").value
        assert (unscored == 1.0) if groups and groups[0].reward is not None else math.isnan(unscored)
        assert all(math.isnan(metric.value) for metric in metrics.values())
