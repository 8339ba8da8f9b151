"""What a turn of the model says: its text, and the tools that it calls."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..common.imports import load_object
from ..common.text import one_line
from .forms import Unreadable, before_calls, common_forms, read_json

WRITTEN_ID = re.compile(r"[\w.:-]{1,64}")  # it can spell no token of a template
MOST_CALLS = 100  # in one turn; further ones are answered as too many


@dataclass(frozen=True)
class Call:
    """A tool that the model calls. Example: `Call("call00001", "add", {"a": 3, "b": 4})`"""

    id: str  # what the model wrote, or nine letters and digits, as Mistral's template wants it
    name: str
    arguments: dict[str, Any]
    problem: str | None = None  # why it can't be made, such as arguments that are no object; None: it can

    def as_message(self) -> dict[str, Any]:
        """Returns the call as chat messages have it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class Turn:
    """A parsed turn of the model. Example: `Turn("Let me add them.", (Call("call00001", "add", {"a": 3, "b": 4}),))`"""

    content: str  # without thinking and calls
    calls: tuple[Call, ...] = ()
    thinking: str = ""
    said: str | None = None  # what was written before the calls, thinking included; None: the content

    def as_message(self) -> dict[str, Any]:
        """Returns the turn as a chat message for rewards and logs. Its content includes thinking, as in single-turn runs."""
        content = self.content if self.said is None else self.said
        found: dict[str, Any] = {"role": "assistant", "content": content}
        if self.calls:
            found["tool_calls"] = [call.as_message() for call in self.calls]
        return found


@dataclass
class TurnParser:
    """Parses the turns of one episode after another: `parse(text)`.

    Args:
        find: (text, a function that returns the text before it) → (content, thinking, the calls as they were written).
        where: how the calls are found, for the announcement.
    """

    find: Callable[[str, Callable[[], str]], tuple[str, str, list[Any]]]
    where: str

    def parse(self, text: str, first: int = 0, before: Callable[[], str] = lambda: "") -> Turn:
        """Parses a turn.

        Args:
            text: what the model wrote, with special tokens, without its end token.
            first: calls that this episode has made before; numbers the ids.
            before: returns the text that the model read before. A template may have begun its turn, by `<think>`, say.

        Returns:
            The turn. A call that can't be made has its problem.
        """
        try:
            content, thinking, written = self.find(text, before)
        except Exception as error:  # noqa: BLE001 - a parser of the user's or of the tokenizer's
            return Turn(text, (_problem(first, "", f"the call could not be read: {one_line(error, 200)}"),))
        calls = tuple(_call(first + number, each) for number, each in enumerate(written[:MOST_CALLS]))
        if len({call.id for call in calls}) < len(calls):  # the model wrote one id twice
            calls = tuple(replace(call, id=call_id(first + number)) for number, call in enumerate(calls))
        if len(written) > MOST_CALLS:
            more = f"{len(written)} calls in one turn; only the first {MOST_CALLS} were made"
            calls = (*calls, _problem(first + MOST_CALLS, "", more))
        return Turn(content, calls, thinking, said=before_calls(text) if calls else text)


def find_parser(tokenizer: Any, name: str = "", tools: Sequence[dict[str, Any]] = ()) -> TurnParser:
    """Finds how a model's calls are written.

    Args:
        tokenizer: the model's.
        name: `--tool_parser`: file.py:function, text → calls, or (content, calls); "": the tokenizer's own, else the common
            forms.
        tools: the JSON schemas of the tools.

    Returns:
        The parser.

    Raises:
        ValueError: --tool_parser can't be loaded.
    """
    if name:
        function = load_object(name, "--tool_parser")
        return TurnParser(lambda text, before: _of_user(function(text), text), name)
    if getattr(tokenizer, "response_template", None):

        def own(text: str, before: Callable[[], str]) -> tuple[str, str, list[Any]]:
            found = tokenizer.parse_response(text, prefix=before(), tools=list(tools) or None)
            thinking = found.get("thinking") or found.get("reasoning_content") or ""
            return found.get("content") or "", thinking, list(found.get("tool_calls") or [])

        return TurnParser(own, "the tokenizer's response template")
    return TurnParser(lambda text, before: common_forms(text, tools), "one of the common forms")


def _of_user(found: Any, text: str) -> tuple[str, str, list[Any]]:
    if isinstance(found, tuple):
        content, calls = found
        return str(content), "", list(calls)
    return text, "", list(found or ())


# --------------------------------------------------------------------------- one call


def _call(number: int, written: Any) -> Call:
    """Makes a `Call` from {"name", "arguments" or "parameters"}, which may be inside "function", and an optional "id"."""
    if isinstance(written, Unreadable):
        return _problem(number, "", f"the call is no valid {written.language}: {written.why}")
    if isinstance(written, dict) and isinstance(written.get("function"), dict):
        written = {"id": written.get("id"), **written["function"]}
    if not isinstance(written, dict) or not isinstance(written.get("name"), str):
        return _problem(number, "", 'a call must be an object with "name" and "arguments"')
    name = written["name"]
    arguments = written.get("arguments", written.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments or "{}")
    if isinstance(arguments, Unreadable):
        return _problem(number, name, f"the arguments are no valid JSON: {arguments.why}")
    if not isinstance(arguments, dict):
        return _problem(number, name, f"the arguments must be an object, not {type(arguments).__name__}")
    if (why := _unfit(arguments)) is not None:
        return _problem(number, name, f"the arguments {why}")
    own = written.get("id")
    fit = own if isinstance(own, str) and WRITTEN_ID.fullmatch(own) else call_id(number)
    return Call(fit, name, arguments)


DEEPEST = 50  # levels of an argument


def _unfit(arguments: Any) -> str | None:
    """Returns why arguments can't be passed on and written down; None if they can."""
    level = [arguments]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, float) and not math.isfinite(value):
                return f"have the number {value}, which JSON does not know"
            if isinstance(value, str) and value != value.encode("utf-8", "replace").decode("utf-8"):
                return "have text that is no valid Unicode"
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        if not inner:
            return None
        level = inner
    return f"are nested more than {DEEPEST} deep"


def _problem(number: int, name: str, why: str) -> Call:
    return Call(call_id(number), name or "unknown", {}, why)


def call_id(number: int) -> str:
    """Returns the id of an episode's call. Example: `call_id(7)` is "call00007"."""
    return f"call{number:05d}"[-9:]
