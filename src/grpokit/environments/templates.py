"""Notes about the chat template, printed when a run starts: how it treats calls, thinking and earlier messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..common.text import one_line
from ..types import Messages
from .calls import TurnParser, call_id
from .continuation import QUESTION, Continuation
from .forms import argument_schemas
from .rendering import CONTENT_MARK, MARK, CannotContinue, common_length, render_alike

TEXT_MARK = "qjxvwzk"  # like MARK and CONTENT_MARK, for the text behind thinking
SHOWN = 80  # characters of a call in a message


def check_template(
    continuation: Continuation,
    end: int | None,
    parser: TurnParser,
    schemas: Sequence[Mapping[str, Any]],
    has_steps: bool,
) -> Iterator[str]:
    """Checks on made-up turns that a chat template can render episodes.

    Args:
        continuation: the tokenizer and the tools.
        end: the token that ends a turn.
        parser: parses the calls.
        schemas: the JSON schemas of the tools.
        has_steps: whether an environment answers text.

    Yields:
        A note of one line for each peculiarity of the template that the user should know.

    Raises:
        CannotContinue: a turn can't be followed.
    """
    shapes: list[tuple[list[dict[str, Any]], Messages]] = []
    if schemas:
        call = _call_of(schemas[0], {})
        name = call["function"]["name"]
        answer = {"role": "tool", "tool_call_id": call["id"], "name": name, "content": CONTENT_MARK}
        shapes.append(([call], [answer]))
    if has_steps:
        shapes.append(([], [{"role": "user", "content": CONTENT_MARK}]))
    for shape in shapes:
        continuation.ids(end, *shape)
    if schemas:
        yield from _about_tools(continuation)
        examples = {key: _example(each) for key, each in argument_schemas(schemas[0]).items()}
        yield from _about_calls(continuation, parser, _call_of(schemas[0], examples))
    yield from dict.fromkeys(why for shape in shapes for why in _rewritten(continuation, *shape))


def _call_of(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": schema["function"]["name"], "arguments": dict(arguments)}
    return {"id": call_id(0), "type": "function", "function": function}


def _example(schema: Mapping[str, Any]) -> Any:
    """Returns a value that a schema takes."""
    examples = {"integer": 3, "number": 0.5, "boolean": True, "array": [3], "object": {"a": 3}}
    kind = schema.get("type")
    return examples.get(kind, "a word") if isinstance(kind, str) else "a word"


def _about_tools(continuation: Continuation) -> Iterator[str]:
    with contextlib.suppress(CannotContinue):  # a template that needs tools shows them
        without = replace(continuation, tools=()).render(QUESTION, goes_on=True)
        if without == continuation.render(QUESTION, goes_on=True):
            yield "the chat template does not show tools to the model; describe them in the prompts"
    if not continuation.has_tool_role:
        yield (
            "the chat template writes no messages of the role tool"
            + (f" ({continuation.tool_refusal})" if continuation.tool_refusal else "")
            + "; the tools' answers are written as messages of the user"
        )


def _about_calls(continuation: Continuation, parser: TurnParser, call: dict[str, Any]) -> Iterator[str]:
    """Reads a call as the template writes it."""
    if not continuation.has_tool_role:
        return
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        whole = continuation.render([*QUESTION, turn], goes_on=False)
    except CannotContinue as error:
        yield f"whether calls are read as the chat template writes them is unknown: {error}"
        return
    asked, begun = (continuation.render(QUESTION, goes_on=goes_on) for goes_on in (False, True))
    texts = [whole[common_length(whole, before) :] for before in (begun, asked)]
    function = call["function"]
    if function["name"] not in texts[1]:  # it writes no calls at all
        return
    for text in map(continuation.without_end, texts):
        for found in parser.parse(text).calls:
            if (found.name, found.arguments, found.problem) == (*function.values(), None):
                return
    shown = one_line(continuation.without_end(texts[0]).strip(), SHOWN)
    yield (
        f"a call in the chat template's form is not recognised: {shown}; if the model writes calls in this form, name "
        "your own parser: --tool_parser file.py:function"
    )


def _rewritten(
    continuation: Continuation, calls: Sequence[dict[str, Any]], following: Messages
) -> Iterator[str]:
    """Finds what a template leaves out of a turn, or writes otherwise, once messages follow."""
    if any(m["role"] == "tool" for m in following) and not continuation.has_tool_role:
        return

    def rendered(turn: dict[str, Any]) -> list[str]:
        conversations = [([*QUESTION, turn], False), ([*QUESTION, turn, *following], True)]
        shown = continuation.tools, continuation.template_kwargs
        return render_alike(continuation.tokenizer, conversations, *shown)

    turn: dict[str, Any] = {"role": "assistant", "content": TEXT_MARK}
    if calls:
        turn["tool_calls"] = list(calls)
    thoughts = {key: MARK for key in ("reasoning_content", "reasoning", "thinking")}
    thoughts["content"] = f"<think>\n{MARK}\n</think>\n\n{TEXT_MARK}"
    prompt = continuation.render(QUESTION, goes_on=True)
    keeps_prompt = rendered(turn)[1].startswith(prompt)
    for key, thought in thoughts.items():
        try:
            alone, whole = rendered({**turn, key: thought})
        except CannotContinue:
            continue
        if MARK not in whole and (MARK in alone or (key == "content" and TEXT_MARK in whole)):
            yield "the chat template drops earlier thinking once messages follow; episodes keep what the model wrote"
            return
        keeps_prompt = keeps_prompt or whole.startswith(prompt)  # one that ends in <think>, perhaps
    if not keeps_prompt:
        yield (
            "the chat template writes earlier messages otherwise once others follow; episodes keep them as they were"
        )
