"""What a run says at its start about its chat template."""

from __future__ import annotations

import pytest

from grpokit.environments.calls import find_parser
from grpokit.environments.continuation import CannotContinue, Continuation
from grpokit.environments.templates import check_template
from helpers.chat import PARTS, QWEN, chat_tokenizer

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "properties": {"a": {"type": "integer"}, "note": {"type": "string"}},
            "required": ["a", "note"],
        },
    },
}


def notes(style, template="", has_tools=True, has_steps=False):
    tokenizer = chat_tokenizer(style)
    tokenizer.chat_template = template or tokenizer.chat_template
    schemas = [ADD] if has_tools else []
    continuation = Continuation(tokenizer, {tokenizer.eos_token_id}, schemas)
    parser = find_parser(tokenizer, "", schemas)
    return list(check_template(continuation, tokenizer.eos_token_id, parser, schemas, has_steps))


def test_nothing_is_said_of_a_template_that_keeps_everything():
    assert notes("qwen", has_steps=False) == []


def test_thinking_that_is_dropped_is_announced():
    """The style of Qwen 3 keeps thinking while tools answer, and drops it once the user says more."""
    assert notes("qwen", has_tools=False, has_steps=True) == [
        "the chat template drops earlier thinking once messages follow; episodes keep what the model wrote"
    ]
    always = QWEN.replace("{{ m.content }}{% for call", "{{ m.content.split('</think>')[-1] }}{% for call")
    assert any("drops earlier thinking" in note for note in notes("qwen", always))


def test_history_that_is_rewritten_is_announced():
    numbered = QWEN.replace(
        "<|im_start|>{{ m.role }}\n", "<|im_start|>{{ m.role }} {{ messages | length }}\n"
    )
    found = notes("qwen", numbered)
    assert [note for note in found if "writes earlier messages otherwise" in note]


def test_a_call_that_is_not_read_is_announced():
    strange = QWEN.replace("<tool_call>\n{", "CALL {").replace("}\n</tool_call>", "}")
    (note,) = notes("qwen", strange)
    assert 'CALL {"name": "add", "arguments": {"a": 3, "note": "a word"}}' in note
    assert "--tool_parser" in note


@pytest.mark.parametrize("style", ["llama", "mistral", "glm", "qwen"])
def test_calls_that_are_read_need_no_word(style):
    assert not [note for note in notes(style) if "is not read" in note]


def test_a_template_without_a_role_for_tools_is_announced():
    found = notes("gemma")
    assert any("no messages of the role tool (only user and assistant)" in note for note in found)
    assert any("does not show tools" in note for note in found)


def test_a_template_that_leaves_contents_out_is_refused_before_anything_is_said():
    with pytest.raises(CannotContinue, match="leaves out the content of messages of the role assistant"):
        notes("qwen", PARTS)
