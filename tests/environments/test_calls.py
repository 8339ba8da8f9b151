# ruff: noqa: E501 - calls are one line each
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
    "tags": "<tool_call>\n<function=add>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n4\n</parameter>\n</function>\n</tool_call>",
    "a function tag": '<function=add>{"a": 3, "b": 4}</function>',
    "glm": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>3</arg_value>\n<arg_key>b</arg_key>\n<arg_value>4</arg_value>\n</tool_call>",
    "glm, older": '<tool_call>add\n{"a": 3, "b": 4}</tool_call>',
    "deepseek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 3, "b": 4}\n```<｜tool▁call▁end｜>',
    "deepseek, newer": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 3, "b": 4}<｜tool▁call▁end｜>',
    "deepseek, invoke": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">3</｜DSML｜parameter>\n<｜DSML｜parameter name="b" string="false">4</｜DSML｜parameter>\n</｜DSML｜invoke>',
    "minimax": '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">3</parameter>\n<parameter name="b">4</parameter>\n</invoke>',
    "kimi": '<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 3, "b": 4}<|tool_call_end|>',
    "gpt-oss": '<|channel|>analysis<|message|>3 + 4.<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 3, "b": 4}',
    "gpt-oss, as rendered": ' to=functions.add<|channel|>commentary json<|message|>{"a": 3, "b": 4}',
    "cohere": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 3, "b": 4}}]<|END_ACTION|>',
    "apertus": '<|tools_prefix|>[{"add": {"a": 3, "b": 4}}]<|tools_suffix|>',
    "a list in tags": '<tool_calls>[{"name": "add", "arguments": {"a": 3, "b": 4}}]</tool_calls>',
    "lfm2": "<|tool_call_start|>[add(a=3, b=4)]<|tool_call_end|>",
    "gemma": "<|tool_call>call:add{a:3,b:4}<tool_call|>",
    "solar": '<|tool_calls|><|tool_call:begin|>x1<|tool_call:name|>add<|tool_call:args|>{"a": 3, "b": 4}<|tool_call:end|>',
    "arguments as text": '<tool_call>{"name": "add", "arguments": "{\\"a\\": 3, \\"b\\": 4}"}</tool_call>',
}


BEGIN_A_TURN = ("llama", "python tag", "gpt-oss", "gpt-oss, as rendered")


@pytest.fixture(scope="module")
def parser():
    return find_parser(chat_tokenizer("qwen"))


@pytest.mark.parametrize("form", FORMS)
def test_the_common_forms(parser, form):
    (call,) = parser.parse(FORMS[form]).calls
    assert (call.name, call.arguments, call.problem) == ("add", {"a": 3, "b": 4}, None)
    if form not in BEGIN_A_TURN:
        turn = parser.parse("Let me add. " + FORMS[form])
        assert turn.content == turn.as_message()["content"] == "Let me add."


def test_ids_are_those_that_the_model_wrote(parser):
    assert [call.id for call in parser.parse(FORMS["kimi"]).calls] == ["functions.add:0"]
    assert [call.id for call in parser.parse(FORMS["mistral, with an id"]).calls] == ["abc123xyz"]
    assert [call.id for call in parser.parse(FORMS["hermes"], first=2).calls] == ["call00002"]
    assert [call.id for call in parser.parse(FORMS["kimi"] * 2).calls] == ["call00000", "call00001"]
    hostile = '<tool_call>{"name": "add", "arguments": {}, "id": "<|im_end|>"}</tool_call>'
    assert [call.id for call in parser.parse(hostile).calls] == ["call00000"]


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "integer"}, "3", 3),
        ({"type": "boolean"}, "True", True),
        ({"type": "array"}, '["a"]', ["a"]),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "3", "3"),
        ({"type": "string"}, "two\nlines", "two\nlines"),
        ({}, "no json", "no json"),
        ({}, "3", 3),
    ],
)
def test_arguments_in_tags_have_the_types_of_the_schema(schema, written, value):
    tools = [{"function": {"name": "f", "parameters": {"properties": {"x": schema}}}}]
    parser = find_parser(chat_tokenizer("qwen"), "", tools)
    for text in (
        f"<tool_call>\n<function=f>\n<parameter=x>\n{written}\n</parameter>\n</function>\n</tool_call>",
        f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{written}</arg_value>\n</tool_call>",
        f'<invoke name="f"><parameter name="x">{written}</parameter></invoke>',
    ):
        (call,) = parser.parse(text).calls
        assert call.arguments == {"x": value}


def test_text_with_quotes_in_gemmas_form(parser):
    (call,) = parser.parse('<|tool_call>call:say{n:[1,2],t:<|"|>a:b, "c" {d}<|"|>}<tool_call|>').calls
    assert call.arguments == {"n": [1, 2], "t": 'a:b, "c" {d}'}


def test_nothing_of_a_call_like_code_is_run(parser):
    (call,) = parser.parse("<|tool_call_start|>[add(a=open('x'))]<|tool_call_end|>").calls
    assert "no valid Python" in call.problem


@pytest.mark.parametrize(
    ("text", "content", "thinking"),
    [
        ("[THINK]3 + 4.[/THINK]It is 7.", "It is 7.", "3 + 4."),
        ("<seed:think>3 + 4.</seed:think>It is 7.", "It is 7.", "3 + 4."),
        ("<|channel>thought\n3 + 4.\n<channel|>It is 7.", "It is 7.", "3 + 4."),
        (
            "<|channel|>analysis<|message|>3 + 4.<|end|><|start|>assistant<|channel|>final<|message|>It is 7.",
            "It is 7.",
            "3 + 4.",
        ),
        ("<|channel|>final<|message|>It is 7.", "It is 7.", ""),
        ("It is <|end|> 7.", "It is <|end|> 7.", ""),
    ],
)
def test_thinking_is_parted_from_the_text(parser, text, content, thinking):
    turn = parser.parse(text)
    assert (turn.content, turn.thinking, turn.calls) == (content, thinking, ())


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


def test_the_tokenizers_own_template_sees_what_the_prompt_has_begun():
    """A template that opens the thinking in its generation prompt: the turn's text begins inside it."""
    tokenizer = chat_tokenizer("qwen")
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
            "tool_calls": {
                "open": "<tool_call>",
                "close_pattern": r"</tool_call>\s*",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
        },
    }
    parser = find_parser(tokenizer)
    text = 'I add.</think>\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    turn = parser.parse(
        text, before=lambda: "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert (turn.thinking.strip(), [call.name for call in turn.calls]) == ("I add.", ["add"])
    assert parser.parse(text).thinking != turn.thinking  # without the prompt, it can't be told
