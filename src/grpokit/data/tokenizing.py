"""Turns rows into the tokens that the model reads: texts as they are, chats through the tokenizer's template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..common.text import one_line
from ..types import Messages, Prompt
from .form import PLAIN, PromptForm
from .rows import DatasetRow

BATCH = 1000  # rows that a fast tokenizer gets at once
PROBES = ("a", "0", ".")  # texts that show what a tokenizer adds to any text


def tokenize(
    row: DatasetRow, tokenizer: Any, form: PromptForm = PLAIN, before: list[int] | None = None
) -> Prompt:
    """Turns one row into the prompt that the model sees.

    The tokenizer's warning about long texts is off: lengths are checked against --max_prompt_length later.

    Args:
        row: the row.
        tokenizer: the model's.
        form: how prompts are written.
        before: what `added_before` gives for the tokenizer, where it is known.

    Returns:
        The prompt, at position 0.

    Raises:
        ValueError: the chat template refuses the messages, or no token comes out. The message names file:line.
    """
    content = _content(row, tokenizer, form)
    if isinstance(content, str):
        return _prompt(row, content, text_ids(tokenizer, content + form.prefix, before), form)
    if form.prefix:
        text = _apply_template(content, row, tokenizer, form) + form.prefix
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = _apply_template(content, row, tokenizer, form, tokenize=True)
    return _prompt(row, content, list(map(int, ids)), form)


def tokenize_all(
    rows: Sequence[DatasetRow], tokenizer: Any, form: PromptForm = PLAIN
) -> Iterator[Prompt | ValueError]:
    """Yields the prompt of each row, or the error that `tokenize` raises for it.

    The tokens are those of `tokenize`. A fast tokenizer gets many texts at once, which takes a fraction of the time.

    Args:
        rows: the rows.
        tokenizer: the model's.
        form: how prompts are written.

    Yields:
        The prompt of each row, in order, or its error.
    """
    before = added_before(tokenizer)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        try:
            takes = _takes_batches(tokenizer)
            found = _batch(some, tokenizer, form, before) if takes else None
        except Exception:  # noqa: BLE001 - tokenizing them one by one names the row
            found = None
        yield from found or (_or_error(row, tokenizer, form, before) for row in some)


def text_ids(tokenizer: Any, text: str, before: list[int] | None = None) -> list[int]:
    """Returns exactly the tokens of a text, after the BOS that the tokenizer puts before texts.

    A text that begins with it already, such as a rendered chat, gets no second one. An EOS that the tokenizer would put
    behind the text is left out: the model is to continue it. `before` is what `added_before` gives, where it is known.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return _begun(list(map(int, ids)), added_before(tokenizer) if before is None else before)


def added_before(tokenizer: Any) -> list[int]:
    """Returns the tokens that a tokenizer puts before any text: its BOS, or none."""
    for probe in PROBES:
        bare = list(tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"])
        full = list(tokenizer(probe, verbose=False)["input_ids"])
        places = range(len(full) - len(bare) + 1)
        if bare:
            return full[: next((k for k in places if full[k : k + len(bare)] == bare), 0)]
    return []


def require_template(rows: Sequence[DatasetRow], tokenizer: Any) -> None:
    """Raises ValueError where a row is a chat and the tokenizer has no chat template."""
    chat = next((row for row in rows if not isinstance(row.content, str)), None)
    if chat and not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or "--model"
        raise ValueError(
            f"{chat.source}: `{chat.statement}` is a chat, and the tokenizer of {name} has no chat template; use an "
            "instruct model, put a chat_template.jinja in the model's directory, or state the prompt as text"
        )


# --------------------------------------------------------------------------- many rows at once


def _takes_batches(tokenizer: Any) -> bool:
    """Tells whether the tokenizer is a fast one of transformers, whose template only renders text."""
    render = getattr(type(tokenizer), "apply_chat_template", None)
    ours = getattr(render, "__module__", "").startswith("transformers.")
    return bool(getattr(tokenizer, "is_fast", False)) and ours


def _batch(
    rows: Sequence[DatasetRow], tokenizer: Any, form: PromptForm, before: list[int]
) -> list[Prompt | ValueError]:
    contents = [_content(row, tokenizer, form) for row in rows]
    texts: list[str | ValueError] = []
    for row, content in zip(rows, contents, strict=True):
        try:
            is_text = isinstance(content, str)
            text = content if is_text else _apply_template(content, row, tokenizer, form)
            texts.append(text + form.prefix)
        except ValueError as error:
            texts.append(error)
    good = [text for text in texts if isinstance(text, str)]
    tokenizer("", add_special_tokens=False, verbose=False)  # sets the backend: no truncation and no padding
    encoded = iter(tokenizer.backend_tokenizer.encode_batch_fast(good, add_special_tokens=False))
    found: list[Prompt | ValueError] = []
    for row, content, text in zip(rows, contents, texts, strict=True):
        try:
            if isinstance(text, ValueError):
                raise text
            ids = next(encoded).ids  # a template renders its own BOS
            ids = _begun(ids, before) if isinstance(content, str) else ids
            found.append(_prompt(row, content, ids, form))
        except ValueError as error:
            found.append(error)
    return found


def _or_error(row: DatasetRow, tokenizer: Any, form: PromptForm, before: list[int]) -> Prompt | ValueError:
    try:
        return tokenize(row, tokenizer, form, before)
    except ValueError as error:
        return error


# --------------------------------------------------------------------------- one row


def _content(row: DatasetRow, tokenizer: Any, form: PromptForm) -> str | Messages:
    content, system_prompt = row.content, form.system_prompt
    asks = (row.asks or form.tools_of is not None) and isinstance(content, str)
    if asks and getattr(tokenizer, "chat_template", None):
        content = [{"role": "user", "content": content}]
    if system_prompt and not isinstance(content, str) and content[0]["role"] not in ("system", "developer"):
        content = [{"role": "system", "content": system_prompt}, *content]
    return content


def _begun(ids: Sequence[int], before: list[int]) -> list[int]:
    ids = list(ids)
    return ids if ids[: len(before)] == before else before + ids


def _prompt(row: DatasetRow, content: str | Messages, ids: Sequence[int], form: PromptForm) -> Prompt:
    if len(ids) == 0:
        raise ValueError(f"{row.source}: the tokenizer makes no token of this prompt; expected at least one")
    return Prompt(0, tuple(ids), content, row.columns, row.source, form.prefix)


def _apply_template(
    messages: Messages, row: DatasetRow, tokenizer: Any, form: PromptForm, tokenize: bool = False
) -> Any:
    """Returns a chat as text, or as token ids. The template adds the special tokens; a last assistant turn is left open."""
    prefill = messages[-1]["role"] == "assistant"
    tools = form.tools_of(row.columns) if form.tools_of else []
    kwargs = form.kwargs_of(row.columns, row.source)
    try:
        return tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            tokenize=tokenize,
            add_generation_prompt=not prefill,
            continue_final_message=prefill,
            return_dict=False,  # transformers 5 returns a BatchEncoding otherwise
            tokenizer_kwargs={"verbose": False},
            **kwargs,
        )
    except Exception as error:  # templates are programs of the model's authors, and raise what they like
        turns = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"{row.source}: the chat template refuses these messages ({turns}): {one_line(error)}"
        ) from error
