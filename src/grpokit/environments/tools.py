"""Tools: functions that a model may call, with their JSON schemas."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.imports import load_object
from ..common.text import did_you_mean, one_line


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `make_tool` makes one of a function with type hints and a docstring."""

    name: str
    function: Callable[..., Any]
    schema: Mapping[str, Any]  # as `apply_chat_template(tools=...)` takes it

    @property
    def is_async(self) -> bool:
        """Whether its calls are awaited."""
        return inspect.iscoroutinefunction(self.function)

    def problem_with(self, arguments: Mapping[str, Any]) -> str | None:
        """Returns why it can't be called with these arguments, for the model; None if it can."""
        try:
            inspect.signature(self.function).bind(**arguments)
        except TypeError as error:
            takes = ", ".join(self.schema["function"]["parameters"].get("properties", {})) or "none"
            return f"{self.name}: wrong arguments ({error}); it takes {takes}"
        except ValueError:  # a builtin without a signature
            return None
        return None


def make_tool(function: Callable[..., Any], where: str = "tools", name: str | None = None) -> Tool:
    """Makes a tool of a function.

    Args:
        function: sync or async, with type hints and a docstring that describes each argument under `Args:`.
        where: what named it, for messages.
        name: the tool's name (default: the function's).

    Returns:
        The tool.

    Raises:
        ValueError: it lacks a type hint or a description, or is no function.
    """
    from transformers.utils.chat_template_utils import get_json_schema

    if not callable(function):
        raise ValueError(f"{where}: {function!r} is no function")
    own = getattr(function, "__name__", None)
    if name is None and (own is None or not own.isidentifier()):
        raise ValueError(
            f"{where}: {function!r} has no name that a model could call; use a function made with def"
        )
    if isinstance(function, type):
        raise ValueError(
            f"{where}: {own} is a class; a tool is a function, and a class is named by --environment"
        )
    try:
        schema = copy.deepcopy(get_json_schema(function))
    except Exception as error:
        raise ValueError(
            f"{where}: {own or function!r} cannot be described to the model: {one_line(error, 200).rstrip('!.')}; write a "
            "docstring that says what it does, with a line under Args: for each parameter, and type hints"
        ) from error
    schema["function"]["name"] = name or own
    return Tool(name or str(own), function, schema)


def load_tools(names: Sequence[str]) -> dict[str, Tool]:
    """Loads `--tools file.py:function ...`. Raises ValueError naming one that can't be loaded, or two of one name."""
    return by_name([make_tool(load_object(name, "--tools"), f"--tools {name}") for name in names], "--tools")


def by_name(tools: Sequence[Tool], where: str) -> dict[str, Tool]:
    """Orders tools by name. Raises ValueError where two have one name."""
    found: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in found:
            raise ValueError(f"{where}: two tools are called {tool.name}; rename one of them")
        found[tool.name] = tool
    return found


def unknown_tool(name: str, tools: Mapping[str, Tool]) -> str:
    """Returns the answer to a call of a tool that isn't there."""
    close = did_you_mean(name, tools) if name else ""
    return f"there is no tool {name!r}{close}; there are {', '.join(tools) or 'none'}"


def answer_text(value: Any) -> str:
    """Returns what a tool has returned as the text that the model reads.

    Text stays as it is, apart from surrogates, which no tokenizer takes. Anything else becomes JSON, or else its `str`.

    Example:
        >>> answer_text({"sum": 7}), answer_text(None), answer_text(b"ab")
        ('{"sum": 7}', 'null', 'ab')
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            value = f"(a {type(value).__name__} that is nested too deeply to be shown)"
        except (TypeError, ValueError):
            value = str(value)
    return value.encode("utf-8", "replace").decode("utf-8")


def cut_in_the_middle(ids: Sequence[int], most: int, between: Sequence[int]) -> list[int]:
    """Cuts a long answer's tokens in the middle, and puts `between` there.

    Example:
        >>> cut_in_the_middle([1, 2, 3, 4, 5, 6], 4, [0])
        [1, 2, 0, 6]
    """
    if len(ids) <= most:
        return list(ids)
    room = max(0, most - len(between))
    tail = room // 2
    return [*ids[: room - tail], *between[: most - room], *(ids[len(ids) - tail :] if tail else [])]


def shorten(text: str, most: int, tokenizer: Any) -> str:
    """Cuts a tool's answer that has more than `most` tokens in the middle, and tells the model.

    Args:
        text: the answer.
        most: the most tokens; 0: any number.
        tokenizer: the model's.

    Returns:
        The answer as the model reads it.
    """
    if not most or len(text.encode()) <= most:  # no token is shorter than a byte
        return text

    def encode(piece: str) -> list[int]:
        return tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]

    # A long text's middle is never read: the tokens of its two ends suffice.
    ends = text if len(text) <= 40 * most else text[: 20 * most] + text[-20 * most :]
    ids = encode(ends)
    if len(ids) <= most and ends is text:
        return text
    note = f"\n[... {len(text):,} characters in all; the middle is left out ...]\n"
    return tokenizer.decode(cut_in_the_middle(ids, most, encode(note)), skip_special_tokens=False)
