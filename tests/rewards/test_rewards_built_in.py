"""The rewards that come with it, by hand-made cases."""

from __future__ import annotations

import math
import re
from decimal import Decimal

import numpy as np
import pytest

from grpokit.rewards import BUILT_IN, RewardError, builtin, score
from grpokit.rewards.builtin import exact_match, format_match, shortness
from helpers.completions import NAN, group, load
from helpers.refusals import refuses

ALONE = tuple(name for name in BUILT_IN if name != "judge")  # those that need no server


def test_exact_match_ignores_white_space_at_the_ends():
    completions = [" 1 7 9\n", "1 79", "1 7 9", "", "3", "True"]
    references = ["1 7 9", "1 7 9", "\t1 7 9 ", "", 3, "x"]
    assert exact_match(completions, references) == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("reference", "right"),
    [
        (12226.0, ["12226", "12226.0", " 12226\n"]),
        (-3.0, ["-3"]),
        (0.5, ["0.5"]),
        (1e22, ["10000000000000000000000"]),
        (Decimal("12226.00"), ["12226", "12226.00"]),
        (Decimal("1E+3"), ["1000"]),
        (Decimal("0.10"), ["0.10"]),
        (np.float64(7.0), ["7"]),
        (np.int64(7), ["7"]),
        (["4", 5.0, None], ["4", "5"]),
        (np.array([1.0, 2.0]), ["1", "2"]),
        (("a",), ["a"]),
        ("12226.0", ["12226.0"]),  # text is compared as text
    ],
)
def test_exact_match_of_numbers_and_of_several_references(reference, right):
    assert exact_match(right, [reference] * len(right)) == [1.0] * len(right)
    assert exact_match(["wrong"], [reference]) == [0.0]


def test_exact_match_of_text_stays_exact():
    assert exact_match(["12226", "3"], ["12226.0", "3.0"]) == [0.0, 0.0]


@pytest.mark.parametrize("reference", [[], [None], np.array([])])
def test_exact_match_of_an_empty_list_does_not_apply(reference):
    assert exact_match(["a"], [reference]) == [None]


def test_exact_match_without_a_reference_does_not_apply():
    assert exact_match(["a", "a"], [None, "a"]) == [None, 1.0]


def test_exact_match_reads_the_last_message_of_a_chat():
    assert exact_match([[{"role": "assistant", "content": "4 "}]], ["4"]) == [1.0]


def test_exact_match_refuses_a_reference_that_nothing_matches():
    reward = load("exact_match")
    refuses(
        lambda: score([group("4", answer=[{"a": "4"}])], reward),
        "reward function `exact_match` raised TypeError",
        "{'a': '4'} is a dict; expected text, a number, or a list of these",
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
    (done,) = score(groups, load(*ALONE, columns=groups[0].prompt.columns))
    # no answer in "xx" for accuracy; neither tags nor a box; 2 of 10 tokens; nothing overlong or repeated
    assert dict(zip(ALONE, done.rewards[0].tolist(), strict=True)) == {
        "exact_match": 1.0,
        "format": 1.0,
        "length": 0.8,
        "accuracy": 0.0,
        "format_tags": 0.0,
        "boxed": 0.0,
        "soft_overlong": 0.0,
        "repetition": 0.0,
        "cosine": pytest.approx(-0.25 * (1 + math.cos(0.2 * math.pi))),  # wrong, 2 of 10 tokens
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
def test_format_tags_gives_a_share_for_each_tag(text, value):
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
def test_boxed_finds_a_box_that_is_closed(text, within):
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
