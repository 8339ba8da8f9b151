"""Renderings of made-up conversations, in whichever shape a chat template takes them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.text import one_line
from ..types import Messages

MARK, CONTENT_MARK = "xqzjvkw", "wvkjzqx"  # words that no template writes by itself


class CannotContinue(ValueError):
    """A chat template writes a turn otherwise once messages follow it, so nothing can be put behind the sampled tokens."""


@dataclass(frozen=True)
class CallShape:
    """A form in which a template accepts a turn's calls. Example: `CallShape(arguments_as_text=True)` for DeepSeek"""

    new_ids: bool = False
    only_one: bool = False
    arguments_as_text: bool = False


SHAPES = [CallShape(*each) for each in itertools.product((False, True), repeat=3)]


def _in_shape(messages: Messages, shape: CallShape) -> Messages:
    """Returns the same messages with calls in a shape."""
    ids: dict[Any, str] = {}

    def new_id(old: Any) -> Any:
        return ids.setdefault(old, f"call{len(ids):05d}") if shape.new_ids else old

    def changed(message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "tool":
            return {**message, "tool_call_id": new_id(message.get("tool_call_id"))}
        if not message.get("tool_calls"):
            return message
        calls = []
        for call in message["tool_calls"][: 1 if shape.only_one else None]:
            arguments = call["function"]["arguments"]
            if shape.arguments_as_text:
                arguments = json.dumps(arguments, ensure_ascii=False)
            function = {**call["function"], "arguments": arguments}
            calls.append({**call, "id": new_id(call.get("id")), "function": function})
        return {**message, "tool_calls": calls}

    return [changed(message) for message in messages]


def render_alike(
    tokenizer: Any,
    conversations: Sequence[tuple[Messages, bool]],
    tools: Sequence[dict[str, Any]],
    template_kwargs: Mapping[str, Any],
) -> list[str]:
    """Renders conversations in the first shape that the template takes for all of them.

    Templates differ in what they take: calls one at a time, arguments as text, ids of nine characters.

    Args:
        tokenizer: the model's, with a chat template.
        conversations: pairs of messages, and whether to add the generation prompt.
        tools: the JSON schemas that are shown.
        template_kwargs: other arguments for the template.

    Returns:
        The texts.

    Raises:
        CannotContinue: the template refuses the messages in every shape.
    """
    problem: Exception | None = None
    has_calls = any(m.get("tool_calls") for messages, _ in conversations for m in messages)
    for shape in SHAPES if has_calls else SHAPES[:1]:
        try:
            return [
                tokenizer.apply_chat_template(
                    _in_shape(messages, shape),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=goes_on,
                    **template_kwargs,
                )
                for messages, goes_on in conversations
            ]
        except Exception as error:  # noqa: BLE001 - templates are programs of the model's authors
            problem = problem or error
    roles = ", ".join(message["role"] for message in conversations[-1][0])
    raise CannotContinue(
        f"its chat template refuses these messages ({roles}): {one_line(problem)}"
    ) from problem


def from_the_user(messages: Messages) -> Messages:
    """Joins the tools' answers to one message of the user, for templates without a role for tools."""
    answers = "\n".join(text_of(m.get("content")) for m in messages if m["role"] == "tool")
    return [{"role": "user", "content": answers}, *(m for m in messages if m["role"] != "tool")]


def marked(messages: Messages) -> Messages:
    """Replaces each message's content by a numbered mark that no template writes by itself."""
    return [{**m, "content": f"{CONTENT_MARK}{i}{CONTENT_MARK}"} for i, m in enumerate(messages)]


def common_length(one: str, two: str) -> int:
    """Returns how many characters two texts have in common at their beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )


def text_of(content: Any) -> str:
    """Returns a message's content as text."""
    return content if isinstance(content, str) else repr(content)
