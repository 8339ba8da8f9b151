"""How prompts are written: what is put around a row's content, and what a chat template gets besides the messages."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.text import name_and_value, one_line

ToolsOf = Callable[[Mapping[str, Any]], list[dict[str, Any]]]
"""(a row's columns) → the JSON schemas of the tools that its prompt shows. With such a function, every prompt is a chat."""

COLUMN = "chat_template_kwargs"  # a row's own arguments for the template
# Arguments of `apply_chat_template` that are set for it.
OURS = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclass(frozen=True)
class PromptForm:
    """How prompts are written.

    Example:
        >>> PromptForm(template_kwargs={"enable_thinking": False}).kwargs_of({}, "a.jsonl:1")
        {'enable_thinking': False}
    """

    system_prompt: str = ""  # put before a chat that doesn't begin with a system message of its own
    tools_of: ToolsOf | None = (
        None  # the tools that a row's prompt shows, where an episode may have several turns
    )
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # arguments for the chat template
    template_file: str = ""  # where the chat template comes from, if it is not the tokenizer's own
    prefix: str = ""  # the beginning of every completion: the last tokens of the prompt

    @property
    def of_chats(self) -> str:
        """Names the given option that applies to chats alone, with its value; "" if none is given."""
        if self.system_prompt:
            return f"--system_prompt {one_line(self.system_prompt, 40)!r}"
        kwargs = " ".join(f"{name}={json.dumps(value)}" for name, value in self.template_kwargs.items())
        if kwargs:
            return f"--chat_template_kwargs {kwargs}"
        return f"--chat_template {self.template_file}" if self.template_file else ""

    def kwargs_of(self, columns: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Returns the template's arguments for a row: the run's, overridden by the row's column `chat_template_kwargs`.

        Raises:
            ValueError: the column holds something else. The message names `source`, the row.
        """
        own = columns.get(COLUMN)
        if isinstance(own, str):
            try:
                own = json.loads(own)
            except ValueError:
                own = [own]
        if own is not None and (not isinstance(own, Mapping) or OURS & set(own)):
            raise ValueError(
                f"{source}: `{COLUMN}` is {one_line(repr(columns[COLUMN]), 80)}; expected an object of arguments for the chat "
                'template, such as {"enable_thinking": false}'
            )
        # Parquet adds nulls for arguments that other rows have.
        return {**self.template_kwargs, **{k: v for k, v in (own or {}).items() if v is not None}}


PLAIN = PromptForm()


def parse_template_kwargs(items: Sequence[str], flag: str = "--chat_template_kwargs") -> dict[str, Any]:
    """Reads arguments for a chat template: name=value, where the value is JSON, or a text.

    Raises:
        ValueError: an item is malformed, or names an argument that is set already.

    Example:
        >>> parse_template_kwargs(["enable_thinking=false", "style=short"])
        {'enable_thinking': False, 'style': 'short'}
    """
    found: dict[str, Any] = {}
    for item in items:
        name, text = name_and_value(item, flag, "enable_thinking=false")
        if name in OURS:
            raise ValueError(f"{flag} {item}: {name} is set by grpokit; leave it out")
        try:
            found[name] = json.loads(text)
        except ValueError:
            # Python's spelling is not JSON. Left as text, "False" would count as true in a template.
            found[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return found


def with_chat_template(tokenizer: Any, file: str) -> Any:
    """Returns a tokenizer with the chat template of a file; the same tokenizer where `file` is "".

    Raises:
        ValueError: the file can't be read.
    """
    if not file:
        return tokenizer
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--chat_template {file}: cannot be read: {error}") from error
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = text
    return tokenizer
