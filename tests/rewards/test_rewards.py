"""Rewards: what's loaded and refused before sampling, how functions are called, and what their answers become."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from grpokit.rewards import BUILT_IN, Reward, RewardError, builtin, reward_metrics, score
from grpokit.rewards.builtin import exact_match, format_match, shortness
from helpers.completions import group, load, scored
from helpers.refusals import refuses

NAN = math.nan


def line_of(fn) -> str:
    return f"{__file__}:{fn.__code__.co_firstlineno}"


# --------------------------------------------------------------------------- the built-in rewards


def test_exact_match_ignores_white_space_at_the_ends():
    completions = [" 1 7 9\n", "1 79", "1 7 9", "", "3", "True"]
    references = ["1 7 9", "1 7 9", "\t1 7 9 ", "", 3, "x"]
    assert exact_match(completions, references) == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_exact_match_without_a_reference_does_not_apply():
    assert exact_match(["a", "a"], [None, "a"]) == [None, 1.0]


def test_exact_match_reads_the_last_message_of_a_chat():
    assert exact_match([[{"role": "assistant", "content": "4 "}]], ["4"]) == [1.0]


def test_exact_match_refuses_a_reference_that_nothing_matches():
    reward = load("exact_match")
    refuses(
        lambda: score([group("4", answer=["4"])], reward),
        "reward function `exact_match` raised TypeError",
        "['4'] is a list",
        kind=RewardError,
    )


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth"])
def test_exact_match_finds_its_column(column):
    reward = load("exact_match", columns=["level", column])
    (done,) = score([group("4", "5", level=1, **{column: "4"})], reward)
    assert done.rewards.tolist() == [[1.0], [0.0]]


def test_exact_match_takes_the_first_of_its_columns_or_the_one_that_is_named():
    columns = {"answer": "a", "solution": "s", "key": "k"}
    groups = [group("a", "s", "k", **columns)]
    (default,) = score(groups, load("exact_match", columns=columns))
    (named,) = score(groups, load("exact_match", columns=columns, answer_column="key"))
    assert default.reward.tolist() == [1.0, 0.0, 0.0]
    assert named.reward.tolist() == [0.0, 0.0, 1.0]


def test_exact_match_without_a_column_names_those_that_exist():
    refuses(
        lambda: load("exact_match", columns=["level", "kind"]),
        "--reward_funcs exact_match: no column answer, solution, ground_truth",
        "--answer_column",
        "the dataset has kind, level",
    )
    refuses(lambda: load("exact_match", columns=[]), "no columns beside the prompt")


def test_an_unknown_answer_column_names_those_that_exist():
    refuses(
        lambda: load("exact_match", columns=["result", "level"], answer_column="results"),
        "--answer_column results: no such column (did you mean 'result'?)",
        "the dataset has level, result",
    )


def test_format_searches_over_lines():
    assert format_match(["<a>\n</a>", "x<a></a>", "<a>"], re.compile("<a>.*</a>", re.DOTALL)) == [
        1.0,
        1.0,
        0.0,
    ]
    reward = load("format", format_pattern="^<a>.*</a>$")
    (done,) = score([group("<a>\n1</a>", "x<a></a>")], reward)
    assert done.reward.tolist() == [1.0, 0.0]


def test_format_refuses_what_is_no_regular_expression():
    refuses(
        lambda: load("format", format_pattern="(a"),
        "--format_pattern '(a': not a regular expression: missing )",
    )


def test_length_is_one_less_the_share_of_the_limit():
    assert shortness([[1], [1] * 5, [1] * 10], 10) == pytest.approx([0.9, 0.5, 0.0])
    (done,) = score([group("ab", "a" * 10)], load("length", max_completion_length=20))
    assert done.reward.tolist() == pytest.approx([0.9, 0.5])


def test_a_column_named_like_an_option_changes_nothing():
    groups = [group("xx", pattern="never", max_completion_length=2, answer="xx", column="level")]
    (done,) = score(groups, load(*BUILT_IN, columns=groups[0].prompt.columns))
    # no answer in "xx" for accuracy; neither tags nor a box; 2 of 10 tokens; nothing overlong or repeated
    assert dict(zip(BUILT_IN, done.rewards[0].tolist(), strict=True)) == {
        "exact_match": 1.0,
        "format": 1.0,
        "length": 0.8,
        "accuracy": 0.0,
        "format_tags": 0.0,
        "boxed": 0.0,
        "soft_overlong": 0.0,
        "repetition": 0.0,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\nb</think> \n <answer>4</answer>\n", 1.0),
        ("<think>a</think>b", 0.0),
        ("<think>a</think>so <answer>b</answer>", 0.0),
        ("well <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> done", 0.0),
        ("<think> </think><answer>b</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think>a</answer><answer>b</think>", 0.0),
        ("", 0.0),
    ],
)
def test_format_tags(text, value):
    assert builtin.format_tags([text, [{"role": "assistant", "content": text}]]) == [value, value]


@pytest.mark.parametrize(
    ("text", "within"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{}", ""),
        (r"\boxed{ }", " "),
        (r"\boxed{4", ""),
        (r"\boxed{1} and \boxed{2", ""),
        ("4", ""),
    ],
)
def test_boxed(text, within):
    assert builtin.last_boxed(text) == within
    assert builtin.boxed([text]) == [float(bool(within.strip()))]


def test_soft_overlong_is_equation_13_of_dapo():
    """L_max 10, L_cache 4: 0 up to 6 tokens, then a quarter less for each, -1 from 10 on."""
    lengths = [0, 6, 7, 8, 9, 10, 11, 50]
    values = builtin.soft_overlong([[0] * n for n in lengths], 10, 4)
    assert values == [0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]
    (done,) = score([group("a" * 80, "a" * 90, "a" * 100)], load("soft_overlong", max_completion_length=100))
    assert done.reward.tolist() == [0.0, -0.5, -1.0]  # a cache of a fifth, as 4,096 of 20,480
    (done,) = score([group("a" * 9)], load("soft_overlong", soft_cache_length=2))
    assert done.reward.tolist() == [-0.5]


@pytest.mark.parametrize("cache", [0, -1, 11])
def test_soft_overlong_refuses_a_cache_that_is_none(cache):
    refuses(
        lambda: load("soft_overlong", soft_cache_length=cache),
        f"--soft_cache_length {cache}: must be between 1 and --max_completion_length 10",
    )


def test_repetition_is_the_share_of_repeated_n_grams():
    # 1 2 1 2 1: bigrams 12 21 12 21, two of four; 5 5 5 5: one of three; TRL's documented example: 5 fives, -0.75
    ids = [[1, 2, 1, 2, 1], [5] * 4, [1, 2, 3], [1], [], [5] * 5]
    assert builtin.repetition(ids, 2, -1.0) == pytest.approx([-1 / 2, -2 / 3, 0.0, 0.0, 0.0, -0.75])
    assert builtin.repetition([[1, 2, 3] * 2], 3, -0.5) == pytest.approx([-0.5 / 4])
    (done,) = score([group("aaaa")], load("repetition", repetition_n_grams=1, repetition_max_penalty=-2.0))
    assert done.reward.tolist() == [-1.5]


def test_repetition_refuses_options_that_cannot_work():
    refuses(lambda: load("repetition", repetition_n_grams=0), "--repetition_n_grams 0: must be at least 1")
    for penalty in (0.5, NAN, -math.inf):
        refuses(
            lambda penalty=penalty: load("repetition", repetition_max_penalty=penalty),
            f"--repetition_max_penalty {penalty}: ",
        )


# --------------------------------------------------------------------------- loading


def test_names_functions_and_weights(write):
    path = write("def mine(completions):\n    return [2.0] * len(completions)\n")
    rewards = load("length", f"{path}:mine", weights=(0.5, 2))
    assert [(reward.name, reward.weight) for reward in rewards] == [("length", 0.5), ("mine", 2.0)]
    assert [reward.weight for reward in load("length", "format")] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (
            "exact_mach",
            ["exact_mach: no built-in", "did you mean 'exact_match'?", "exact_match, format, length"],
        ),
        ("zzz", ["zzz: no built-in reward of that name; built in are", "file.py:function"]),
        ("mine.py", ["mine.py: expected file.py:name or package.module:name"]),
        ("no.py:f", ["no.py:f", "No such file"]),
        ("os.path:jion", ["os.path:jion", "did you mean 'join'?"]),
        ("os:sep", ["os:sep: a str; expected a function f(completions, ...)"]),
        ("fractions:Fraction", ["fractions:Fraction: a ABCMeta; expected a function"]),
        ("builtins:dir", ["builtins:dir: no signature found", "wrap it in a def"]),
    ],
)
def test_an_unknown_function_names_the_flag(spec, parts):
    refuses(lambda: load(spec), f"--reward_funcs {parts[0]}", *parts[1:])


def test_a_second_function_of_the_same_name_is_refused(write):
    path = write("def length(completions): ...\n")
    refuses(lambda: load("length", f"{path}:length"), f"--reward_funcs {path}:length: a second `length`")


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), (1.0, NAN), (math.inf, 1.0)])
def test_weights_that_do_not_fit_are_refused(weights):
    shown = " ".join(map(str, weights))
    refuses(
        lambda: load("length", "format", weights=weights),
        f"--reward_weights {shown}: expected 2 finite numbers",
    )


@pytest.mark.parametrize("column", ["prompts", "completions", "completion_ids"])
def test_a_column_that_shadows_the_sampler_is_refused(column):
    refuses(
        lambda: load("length", columns=["answer", column]), f"--dataset: rewards get the sampler's `{column}`"
    )


def test_a_parameter_that_is_not_there_is_refused_before_any_rollout(write):
    path = write("import os\n\n\ndef f(completions, anwser, level=3):\n    return []\n")
    refuses(
        lambda: load(f"{path}:f", columns=["level", "answer"]),
        f"{path}:4: reward function `f` requires `anwser` (did you mean 'answer'?)",
        "prompts, completions, completion_ids",
        "the dataset's columns: answer, level",
    )
    refuses(lambda: load(f"{path}:f", columns=[]), "the dataset's columns: none")


@pytest.mark.parametrize("signature", ["x", "x, /", "*, x", "completions, x, **kwargs"])
def test_a_required_parameter_of_any_kind_is_checked(write, signature):
    path = write(f"def f({signature}): ...\n")
    refuses(lambda: load(f"{path}:f"), f"{path}:1: reward function `f` requires `x`")


# --------------------------------------------------------------------------- calling

EVERYTHING = {"prompts", "completions", "completion_ids", "answer", "level"}
TWO = [
    group("a", "b", content="p1", answer="1", level=5),
    group("c", content="p2", line=2, answer="2", level=None),
]


def call(fn, groups=TWO):
    """What `fn` is called with, as it sees it in its return value `seen`."""
    score(groups, [Reward("f", fn)])


def test_arguments_are_one_list_entry_for_each_completion():
    seen = {}

    def f(completions, **kwargs):
        seen.update(kwargs, completions=completions)
        return [0] * len(completions)

    call(f)
    assert seen == {
        "prompts": ["p1", "p1", "p2"],
        "completions": ["a", "b", "c"],
        "completion_ids": [[97], [98], [99]],
        "answer": ["1", "1", "2"],
        "level": [5, 5, None],
    }


def test_functions_get_what_they_ask_for_by_name():
    zeros = [0.0] * 3

    def by_name(level, completions):
        assert (level, completions) == ([5, 5, None], ["a", "b", "c"])
        return zeros

    def keyword_only(*, answer, nowhere="default"):
        assert (answer, nowhere) == (["1", "1", "2"], "default")
        return zeros

    def positional_only(completions, nowhere=7, answer=None, /, level=None):
        assert (completions, nowhere, answer, level) == (["a", "b", "c"], 7, ["1", "1", "2"], [5, 5, None])
        return zeros

    def positional_and_rest(completions, /, **rest):
        assert completions == ["a", "b", "c"]
        assert rest.keys() == EVERYTHING - {"completions"}
        return zeros

    def anything(*args, **kwargs):
        assert args == ()
        assert kwargs.keys() == EVERYTHING
        return zeros

    class Callable:
        def __call__(self, completions):
            return zeros

        def method(self, answer):
            return zeros

    for fn in (
        by_name,
        keyword_only,
        positional_only,
        positional_and_rest,
        anything,
        Callable(),
        Callable().method,
    ):
        call(fn)


def test_a_chat_is_given_as_messages_and_a_text_as_text():
    chat = [{"role": "user", "content": "q"}]

    def f(prompts, completions):
        assert prompts == [chat, "q"]
        assert completions == [[{"role": "assistant", "content": "a"}], "b"]
        return [0, 0]

    call(f, [group("a", content=chat), group("b")])


def test_a_function_is_called_once_for_all_groups():
    calls = []
    call(lambda completions: calls.append(completions) or [0] * len(completions))
    assert calls == [["a", "b", "c"]]


def test_a_function_cannot_change_the_lists_of_the_next():
    def greedy(completions, answer):
        rewards = [0.0 for _ in completions]
        completions.clear()
        answer.clear()
        return rewards

    groups = [group("1", "2", answer="1"), group("3", answer="4")]
    (first, _) = score(groups, [Reward("greedy", greedy), Reward("exact", exact_match)])
    assert first.rewards.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_no_groups_call_nothing():
    assert score([], [Reward("f", lambda completions: 1 / 0)]) == []


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
        ([1.0], "[1.0]"),
        (torch.ones(1), "tensor([1.])"),
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
    assert set(whole) == {"reward", "reward_std", "frac_reward_zero_std", "rewards/f/mean", "rewards/f/std"}
    for name in whole:
        assert (first[name] + second[name]).value == pytest.approx(whole[name].value, rel=1e-12)


def test_equal_rewards_have_no_std_at_all():
    groups = scored([0.1] * 7)
    assert value_of(groups, "reward_std") == 0.0
    assert value_of(groups, "frac_reward_zero_std") == 1.0


def test_metrics_without_any_reward_are_nan():
    for groups in (scored([None, None]), [], [group("a")]):
        assert all(math.isnan(metric.value) for metric in reward_metrics(groups, F).values())
