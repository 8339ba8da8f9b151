"""Calls in a model's turn: the common forms, and what is wrong with them."""

from __future__ import annotations

import pytest

from grpokit.environments.calls import MOST_CALLS, call_id, find_parser
from helpers.chat import chat_tokenizer

ADD = {"name": "add", "arguments": {"a": 3, "b": 4}}
FORMS = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>',
    "unclosed": '<tool_call>{"name": "add", "arguments": {"a": 3, "b": 4}}',
    "llama": '{"name": "add", "parameters": {"a": 3, "b": 4}}',
    "python tag": '<|python_tag|>{"name": "add", "parameters": {"a": 3, "b": 4}}',
    "mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 3, "b": 4}}]',
    "mistral, newer": '[TOOL_CALLS]add[ARGS]{"a": 3, "b": 4}',
    "mistral, with an id": '[TOOL_CALLS]add[CALL_ID]abc123xyz[ARGS]{"a": 3, "b": 4}',
    "arguments as text": '<tool_call>{"name": "add", "arguments": "{\\"a\\": 3, \\"b\\": 4}"}</tool_call>',
}


@pytest.fixture(scope="module")
def parser():
    return find_parser(chat_tokenizer("qwen"))


@pytest.mark.parametrize("form", FORMS)
def test_the_common_forms(parser, form):
    (call,) = parser.parse(FORMS[form]).calls
    assert (call.name, call.arguments, call.problem) == ("add", {"a": 3, "b": 4}, None)
    assert len(call.id) == 9


def test_text_and_thinking_stand_beside_the_calls(parser):
    turn = parser.parse("<think>3 + 4. <tool_call>{}</tool_call>?</think>\n\nLet me add. " + FORMS["hermes"])
    assert (turn.content, turn.thinking, len(turn.calls)) == (
        "Let me add.",
        "3 + 4. <tool_call>{}</tool_call>?",
        1,
    )
    assert turn.as_message()["content"] == "<think>3 + 4. <tool_call>{}</tool_call>?</think>\n\nLet me add."
    assert parser.parse("It is 7.").calls == ()
    assert parser.parse("<think>unfinished <tool_call>{}").calls == ()
    assert parser.parse('{"name": "Bob", "age": 3}').calls == ()


def test_several_calls_are_numbered_through_the_episode(parser):
    calls = parser.parse(FORMS["hermes"] * 3, first=5).calls
    assert [call.id for call in calls] == [call_id(5), call_id(6), call_id(7)]
    two = parser.parse('{"name": "add", "parameters": {}}; {"name": "sub", "parameters": {}}').calls
    assert [call.name for call in two] == ["add", "sub"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{nonsense}</tool_call>", "the call is no valid JSON"),
        ("<tool_call>" + "[" * 500 + "]" * 500 + "</tool_call>", 'a call must be an object with "name"'),
        ("<tool_call>" + '{"a":' * 100_000 + "</tool_call>", "the call is no valid JSON"),
        ('<tool_call>{"name": 3}</tool_call>', 'a call must be an object with "name"'),
        (
            '<tool_call>{"name": "add", "arguments": [3, 4]}</tool_call>',
            "the arguments must be an object, not list",
        ),
        ('<tool_call>{"name": "add", "arguments": "{"}</tool_call>', "the arguments are no valid JSON"),
        ('[TOOL_CALLS] {"name"', "the call is no valid JSON"),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "have the number nan"),
        ('<tool_call>{"name": "add", "arguments": {"a": [1e999]}}</tool_call>', "have the number inf"),
        ('<tool_call>{"name": "add", "arguments": {"a": "\\ud83d"}}</tool_call>', "no valid Unicode"),
        (
            '<tool_call>{"name": "add", "arguments": {"a": ' + "[" * 500 + "]" * 500 + "}}</tool_call>",
            "are nested more than 50 deep",
        ),
    ],
)
def test_a_call_that_cannot_be_read_has_its_problem(parser, text, problem):
    (call,) = parser.parse(text).calls
    assert problem in call.problem


def test_a_flood_of_calls_is_cut(parser):
    calls = parser.parse(FORMS["hermes"] * (MOST_CALLS + 20)).calls
    assert len(calls) == MOST_CALLS + 1
    assert f"only the first {MOST_CALLS} were made" in calls[-1].problem


def test_a_parser_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def parse(text):\n    return text.upper(), [{'name': text, 'arguments': {}}]\n"
    )
    turn = find_parser(chat_tokenizer("qwen"), f"{tmp_path / 'mine.py'}:parse").parse("add")
    assert (turn.content, turn.calls[0].name) == ("ADD", "add")
    (tmp_path / "bad.py").write_text("def parse(text):\n    return text['no']\n")
    (call,) = find_parser(chat_tokenizer("qwen"), f"{tmp_path / 'bad.py'}:parse").parse("x").calls
    assert "the call could not be read" in call.problem
