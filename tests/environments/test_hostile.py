"""Tools, environments and models that do what they should not: each has an answer or a clear message, and an end."""

from __future__ import annotations

import time

import pytest

from grpokit.environments.contract import inspect_environment
from grpokit.environments.dialogue import EnvironmentFailed
from grpokit.environments.tools import answer_text, cut_in_the_middle, make_tool
from helpers.agents import config_of
from helpers.running import start

PARSER = """
def parse(text):
    return [{"name": "tool", "arguments": {"a": "x"}}]
"""
TOOL = '''
import sys, time
def tool(a: str) -> str:
    """A tool.

    Args:
        a: A word.
    """
    %s
'''


def episodes(tmp_path, body, **changes):
    """The episodes of a run whose model calls one tool in every turn."""
    (tmp_path / "hostile.py").write_text(TOOL % body + PARSER)
    settings = {
        "environment": (),
        "tools": (f"{tmp_path / 'hostile.py'}:tool",),
        "tool_parser": f"{tmp_path / 'hostile.py'}:parse",
        "reward_funcs": ("length",),
        "max_completion_length": 200,
        "prompts_per_step": 1,
    }
    run = start(config_of(tmp_path, **(settings | changes)))
    try:
        (group,) = run.rollouts.sampler.sample(run.prompts.take(0, 1), 2)
        return [rollout.episode for rollout in group.rollouts]
    finally:
        run.close()


def _parser(tmp_path, arguments):
    (tmp_path / "other.py").write_text(
        f"def parse(text):\n    return [{{'name': 'tool', 'arguments': {arguments}}}]\n"
    )
    return f"{tmp_path / 'other.py'}:parse"


def answers(found):
    return [m["content"] for e in found for m in e.messages if m["role"] == "tool"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return None", "null"),
        ("return {'a': [1, 2]}", '{"a": [1, 2]}'),
        ("return object", "<class 'object'>"),
        ("return b'\\xff\\xfe'", "\ufffd\ufffd"),
        ("return 'x\\ud800y'", "x?y"),
        ("raise KeyError('no')", "Error: tool raised KeyError: 'no'"),
        ("sys.exit(3)", "Error: tool raised SystemExit: 3"),
        ("return len(a) + 'x'", "Error: tool raised TypeError: unsupported"),
    ],
)
def test_what_a_tool_returns_or_raises_is_answered(tmp_path, body, expected):
    said = answers(episodes(tmp_path, body))
    assert said
    assert all(text.startswith(expected) for text in said)


def test_a_tool_that_hangs_is_answered_as_timed_out(tmp_path):
    began = time.monotonic()
    found = episodes(tmp_path, "time.sleep(1000)", tool_timeout=0.3, max_turns=2)
    assert set(answers(found)) == {"Error: tool: no answer within 0.3 seconds"}
    assert time.monotonic() - began < 60
    assert all(e.failures == sum(e.calls.values()) for e in found)


def test_ten_megabytes_are_cut_in_the_middle(tmp_path):
    found = episodes(
        tmp_path, "return 'word ' * 2_000_000", max_tool_output=200, max_completion_length=600, max_turns=2
    )
    (said,) = set(answers(found))
    assert said.startswith("word word")
    assert "10,000,000 characters in all; the middle is left out" in said
    assert len(said) < 1000


def test_an_answer_without_room_ends_the_episode(tmp_path):
    found = episodes(tmp_path, "return 'word ' * 100_000", max_completion_length=100)
    assert {e.ending for e in found} == {"length"}


def test_a_model_that_calls_for_ever_ends_with_its_turns(tmp_path):
    found = episodes(tmp_path, "return '1'", max_turns=3, max_completion_length=800, max_turn_length=20)
    assert {e.ending for e in found} <= {"turns", "length"}
    assert any(e.ending == "turns" and len(e.turns) == 3 for e in found)


def test_a_tool_that_edits_its_arguments_edits_its_own(tmp_path):
    found = episodes(tmp_path, "a.append('y'); return str(a)", tool_parser=_parser(tmp_path, '{"a": ["x"]}'))
    assert set(answers(found)) == {"['x', 'y']"}
    assert all(
        call["function"]["arguments"] == {"a": ["x"]}
        for e in found
        for m in e.messages
        for call in m.get("tool_calls", ())
    )


def test_unknown_tools_and_wrong_arguments_are_answered(tmp_path):
    (tmp_path / "parsers.py").write_text(
        "def unknown(text):\n    return [{'name': 'tol', 'arguments': {}}]\n"
        "def wrong(text):\n    return [{'name': 'tool', 'arguments': {'b': 1}}]\n"
    )
    for name, words in (
        ("unknown", "there is no tool 'tol' (did you mean 'tool'?)"),
        ("wrong", "wrong arguments"),
    ):
        said = answers(
            episodes(
                tmp_path,
                "return a",
                tool_parser=f"{tmp_path / 'parsers.py'}:{name}",
                output_dir=str(tmp_path / name),
            )
        )
        assert said
        assert all(words in text for text in said)


ENVIRONMENT = """
from grpokit.environments.contract import Observation
class World:
    def reset(self, **columns):
        %s
    def step(self, message: str) -> Observation:
        %s
    def close(self):
        closed.append(1)
closed = []
"""


@pytest.mark.parametrize(
    ("reset", "step", "message"),
    [
        ("raise ValueError('no world')", "pass", r"train.jsonl:\d: World.reset raised ValueError: no world"),
        ("return 7", "pass", r"World.reset: returned int; expected None, a text or messages"),
        ("pass", "return 'text'", r"World.step: returned str; expected an Observation"),
        ("pass", "raise SystemExit(3)", r"World.step raised SystemExit: 3"),
        (
            "import time; time.sleep(1000)",
            "pass",
            r"World.reset: no answer within 0.5 seconds; see --tool_timeout",
        ),
    ],
)
def test_an_environment_that_fails_is_named_with_its_row_and_closed(tmp_path, reset, step, message):
    (tmp_path / "world.py").write_text(ENVIRONMENT % (reset, step))
    config = config_of(tmp_path, environment=(f"{tmp_path / 'world.py'}:World",), tool_timeout=0.5)
    run = start(config)
    try:
        with pytest.raises(EnvironmentFailed, match=message):
            run.rollouts.sampler.sample(run.prompts.take(0, 1), 2)
    finally:
        run.close()
    from grpokit.common.imports import load_object

    assert len(load_object(f"{tmp_path / 'world.py'}:closed", "--environment")) == 2


def test_what_is_no_tool_or_environment_is_refused():
    def untyped(a):
        """No type."""

    with pytest.raises(ValueError, match="'untyped' cannot be described to the model"):
        make_tool(untyped)
    with pytest.raises(ValueError, match="has no name that a model could call"):
        make_tool(lambda a: a)

    class Nothing:
        def reset(self):
            """Begins."""

    with pytest.raises(ValueError, match="Nothing has neither tools"):
        inspect_environment(Nothing)


def test_long_answers_keep_both_ends():
    assert cut_in_the_middle(list(range(10)), 6, [99]) == [0, 1, 2, 99, 8, 9]
    assert cut_in_the_middle([1, 2], 6, [99]) == [1, 2]
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert answer_text(deep)
