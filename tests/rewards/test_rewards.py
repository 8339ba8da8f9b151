"""Rewards: which functions are loaded and which refused before sampling, and how they are called."""

from __future__ import annotations

import math

import pytest

from grpokit.rewards import Reward, score
from grpokit.rewards.builtin import exact_match
from grpokit.rewards.reporting import OF_TRL
from helpers.completions import NAN, call, group, load
from helpers.refusals import refuses

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
        lambda: load("length", columns=["answer", column]), f"--dataset: rewards get the run's `{column}`"
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

EVERYTHING = {"prompts", "completions", "completion_ids", "answer", "level", *OF_TRL}


def test_arguments_are_one_list_entry_for_each_completion():
    seen = {}

    def f(completions, **kwargs):
        seen.update(kwargs, completions=completions)
        return [0] * len(completions)

    call(f)
    assert [callable(seen.pop(name)) for name in OF_TRL] == [False, True, True]
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


CHAT = [{"role": "user", "content": "q"}]
JUDGED = {"ground_truth": ["4"], "style": "rule"}


def edits_everything(prompts, completions, completion_ids, reward_model, **columns):
    """Edits all that it gets, at every depth."""
    for prompt, completion, ids, judged in zip(
        prompts, completions, completion_ids, reward_model, strict=True
    ):
        prompt.append(completion[0])
        completion[0]["content"] += "!"
        ids.clear()
        judged.pop("style")
        judged["ground_truth"].append("5")
    return [0.0] * len(completions)


async def edits_later(prompts, completions, reward_model):
    for prompt, judged in zip(prompts, reward_model, strict=True):
        prompt[0]["content"] = "edited"
        del judged["ground_truth"]
    return [0.0] * len(completions)


def test_a_function_edits_copies_of_its_own_for_each_completion():
    """The group's second completion, the next function, and the group itself have the dataset's values."""
    seen = []

    def looks(prompts, completions, completion_ids, reward_model):
        seen.append((prompts, completions, completion_ids, reward_model))
        return [0.0] * len(completions)

    groups = [group("a", "b", content=[dict(CHAT[0])], reward_model={**JUDGED, "ground_truth": ["4"]})]
    rewards = [
        Reward("edits", edits_everything),
        Reward("later", edits_later),
        Reward("looks", looks),
        Reward("again", edits_everything),
    ]
    (done,) = score(groups, rewards)
    answers = [[{"role": "assistant", "content": text}] for text in "ab"]
    assert seen == [([CHAT, CHAT], answers, [[97], [98]], [JUDGED, JUDGED])]
    assert done.prompt.content == CHAT
    assert done.prompt.columns["reward_model"] == JUDGED


def test_copies_of_a_large_column_of_text_are_cheap():
    """Text is shared, so that ten megabytes for each of 512 completions cost nothing."""
    text = "x" * 10_000_000
    ids = []

    def looks(completions, story, info):
        ids.extend([id(story[0]), id(info[0]["text"])])
        return [0.0] * len(completions)

    call(looks, [group(*["a"] * 512, story=text, info={"text": text})])
    assert ids == [id(text), id(text)]


def test_no_groups_call_nothing():
    assert score([], [Reward("f", lambda completions: 1 / 0)]) == []
