"""Rows of a dataset → `Prompt`s, and the endless, seeded, resumable order in which training draws them.

A row states its prompt in the first of these columns that isn't null; every other column goes to the rewards:

* `prompt`: text, tokenized as it stands; or a list of messages, as in TRL. Messages that end with an assistant
  turn are a prefill: the completion continues that turn.
* `messages`: a chat. A last assistant turn is the reference answer: it's left out of the prompt, and its text
  becomes the column `solution` unless the row has one.
* `question`: text; one user message if the tokenizer has a chat template, plain text otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike
from typing import Any, Literal

import numpy as np

from grpokit.loading import EXPECTED_JSON_LINES, json_lines, one_line, parse_json
from grpokit.types import Messages, Prompt

LongPrompts = Literal["error", "truncate_left", "drop"]

STATEMENTS = ("prompt", "messages", "question")
EXPECTED_ROW = "expected an object with a column `prompt`, `messages` or `question`"
EXPECTED_IN = {
    "prompt": "text, or a list of messages",
    "messages": 'a list of messages like {"role": "user", "content": "text"}',
    "question": "text",
}


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class DatasetRow:
    """One valid row, not yet tokenized. Example: `DatasetRow("2 + 2 =", {"answer": "4"}, "t.jsonl:1", "prompt")`"""

    content: str | Messages
    columns: Mapping[str, Any]  # every other column
    source: str  # "file:line"
    statement: str  # the column that stated the prompt: one of STATEMENTS


def read_rows(
    path: str | PathLike[str], skip_bad_rows: bool = False, flag: str = "--dataset"
) -> tuple[list[DatasetRow], list[str]]:
    """The rows of a JSON-lines file, plain or gzipped, and what was wrong with the rows that were skipped.

    Blank lines are ignored. `flag` is the option that named the file, for messages.

    Raises ValueError: `FILE:LINE: ...` at the first malformed row unless `skip_bad_rows`; naming `flag` for a
    file that can't be read to its end (also with `skip_bad_rows`) or that has no valid row.
    """
    rows, skipped = [], []
    for number, line in json_lines(path, flag):
        if not line.strip():
            continue
        try:
            rows.append(_parse_row(line, f"{path}:{number}"))
        except ValueError as error:
            if not skip_bad_rows:
                mend = "or leave such rows out with --skip_bad_rows"
                raise ValueError(f"{path}:{number}: {error}; {mend}") from error
            skipped.append(f"{path}:{number}: {error}")
    if not rows:
        why = f"all {len(skipped)} rows are malformed, the first: {skipped[0]}" if skipped else "is empty"
        raise ValueError(f"{flag} {path}: {why}; {EXPECTED_JSON_LINES}")
    return rows, skipped


def _parse_row(line: bytes, source: str) -> DatasetRow:
    """Raises ValueError saying what's wrong with the row and what would work; the caller adds file:line."""
    values = parse_json(line)
    if not isinstance(values, dict):
        raise ValueError(f"the row is {_show(values)}; {EXPECTED_ROW}")
    values = {name: value for name, value in values.items() if value is not None or name not in STATEMENTS}
    statement = next((name for name in STATEMENTS if name in values), None)
    if statement is None:
        raise ValueError(f"no prompt; {EXPECTED_ROW}, found {', '.join(map(repr, values)) or 'none'}")
    content: Any = values.pop(statement)
    columns = values
    if statement == "messages" or (statement == "prompt" and isinstance(content, list)):
        _check_messages(statement, content)
        if statement == "messages":
            content, columns = _split_reference(content, columns)
    elif not isinstance(content, str) or not content.strip():
        raise ValueError(f"`{statement}` is {_show(content)}; expected {EXPECTED_IN[statement]}")
    return DatasetRow(content, columns, source, statement)


def _show(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 80)


def _check_messages(statement: str, messages: Any) -> None:
    """Raise ValueError unless `messages` is a list of messages with some text in it."""
    expected = f"expected {EXPECTED_IN['messages']}"
    if not isinstance(messages, list):
        raise ValueError(f"`{statement}` is {_show(messages)}; {expected}")
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, dict) else {}
        if not (isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str)):
            raise ValueError(f"message {number} of `{statement}` is {_show(message)}; {expected}")
    if not any(message["content"].strip() for message in messages):
        raise ValueError(f"`{statement}` has no text in it: {_show(messages)}; {expected}")


def _split_reference(messages: Messages, columns: dict[str, Any]) -> tuple[Messages, dict[str, Any]]:
    """(prompt, columns): a last assistant turn is the answer that the data was made with, not a prompt."""
    if messages[-1]["role"] != "assistant":
        return messages, columns
    *turns, answer = messages
    if not turns or turns[-1]["role"] == "assistant":
        raise ValueError("`messages` has no turn before the assistant's answer; expected one of the user")
    if columns.get("solution") is None:
        columns = {**columns, "solution": answer["content"]}
    return turns, columns


# --------------------------------------------------------------------------- tokenizing


def _tokenize(row: DatasetRow, tokenizer: Any) -> Prompt:
    """The row as the model sees it. `verbose=False`: lengths are checked here, by --max_prompt_length.

    Raises ValueError with file:line if the chat template refuses the messages or no token comes out.
    """
    content = row.content
    if row.statement == "question" and getattr(tokenizer, "chat_template", None):
        content = [{"role": "user", "content": content}]
    if isinstance(content, str):
        ids = tokenizer(content, verbose=False)["input_ids"]
    else:
        ids = _apply_template(content, row.source, tokenizer)
    if len(ids) == 0:
        raise ValueError(f"{row.source}: the tokenizer makes no token of this prompt; expected at least one")
    return Prompt(0, tuple(map(int, ids)), content, row.columns, row.source)


def _apply_template(messages: Messages, source: str, tokenizer: Any) -> list[int]:
    """Token ids of a chat. The template adds the special tokens; a last assistant turn is left open."""
    prefill = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            add_generation_prompt=not prefill,
            continue_final_message=prefill,
            return_dict=False,  # transformers 5 returns a BatchEncoding otherwise
            tokenizer_kwargs={"verbose": False},
        )
    except Exception as error:  # templates are programs of the model's authors, and raise what they like
        turns = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"{source}: the chat template refuses these messages ({turns}): {one_line(error)}"
        ) from error


def _require_template(rows: Sequence[DatasetRow], tokenizer: Any) -> None:
    chat = next((row for row in rows if not isinstance(row.content, str)), None)
    if chat and not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or "--model"
        raise ValueError(
            f"{chat.source}: `{chat.statement}` is a chat, and the tokenizer of {name} has no chat template; use an "
            "instruct model, put a chat_template.jinja in the model's directory, or state the prompt as text"
        )


def _fit(prompts: list[Prompt], limit: int, policy: LongPrompts, reason: str | None) -> list[Prompt]:
    """`prompts` with those over `limit` tokens cut or left out, as `policy` says; ValueError where it's "error"."""
    if policy == "truncate_left":
        return [replace(prompt, ids=prompt.ids[-limit:]) for prompt in prompts]
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= limit]
    if policy != "drop" and len(fitting) < len(prompts):
        first = next(prompt for prompt in prompts if len(prompt.ids) > limit)
        over = reason or f"--max_prompt_length {limit}"
        mend = "lower --max_completion_length" if reason else "raise --max_prompt_length"
        raise ValueError(
            f"{first.source}: the prompt has {len(first.ids)} tokens, over {over} "
            f"({len(prompts) - len(fitting)} of {len(prompts)} prompts are, the longest has "
            f"{max(len(prompt.ids) for prompt in prompts)}); {mend}, or instead of --long_prompts "
            "error use truncate_left (keep the last tokens) or drop (leave such prompts out)"
        )
    return fitting


# --------------------------------------------------------------------------- the order


@lru_cache(maxsize=4)
def _epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """[n] the rows in the order of one epoch: a function of (n, seed, epoch) alone.

    Raw bits are sorted because numpy promises them for ever, but not the stream of `Generator.permutation`.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")
    order.setflags(write=False)
    return order


class Prompts:
    """Tokenized prompts in an endless order: every row once per epoch, each epoch shuffled anew.

    The order is a function of (seed, position) alone, so resuming needs no state but the position.

    Example: `Prompts(rows, tokenizer, seed=1).take(step * 8, 8)` are the prompts of a step.

    Attributes: `columns`, the names of all columns (a prompt has None where its row lacks one); `skipped_rows`,
    what was wrong with the malformed rows; `skipped`, `dropped` and `truncated`, how many rows were malformed,
    too long and left out, too long and cut.
    """

    def __init__(
        self,
        rows: Sequence[DatasetRow],
        tokenizer: Any,
        *,
        max_prompt_length: int | None = None,
        limit_reason: str | None = None,
        long_prompts: LongPrompts = "error",
        seed: int = 42,
        skip_bad_rows: bool = False,
        skipped_rows: Sequence[str] = (),
        flag: str = "--dataset",
    ) -> None:
        """Tokenize all `rows` (of `read_rows`) with a Hugging Face tokenizer.

        Args:
            max_prompt_length: in tokens; None: no limit. `limit_reason` says where it comes from, if not from its flag.
            long_prompts: what to do with prompts over that; "truncate_left" keeps the last tokens.
            skip_bad_rows: rows that the chat template refuses or that have no tokens join `skipped_rows`, which
                are those that `read_rows` skipped.
            flag: the option that named the dataset, for messages.

        Raises ValueError naming file:line for such a row, for a chat whose tokenizer has no chat template, and
        for a prompt over `max_prompt_length` if `long_prompts` is "error"; naming `flag` if no prompt is left.
        """
        _require_template(rows, tokenizer)
        prompts, bad = [], list(skipped_rows)
        for row in rows:
            try:
                prompts.append(_tokenize(row, tokenizer))
            except ValueError as error:
                if not skip_bad_rows:
                    raise
                bad.append(str(error))
        limit = max_prompt_length or max((len(prompt.ids) for prompt in prompts), default=0)
        fitting = _fit(prompts, limit, long_prompts, limit_reason)
        if not fitting:
            over = f"{len(prompts)} over --max_prompt_length {limit}, which --long_prompts drop leaves out"
            raise ValueError(
                "; ".join([f"{flag}: no prompt is left: {len(bad)} malformed, {over}", *bad[:1]])
            )
        self.columns = {name for row in rows for name in row.columns}
        self.seed = seed
        self.skipped_rows = tuple(bad)
        self.skipped = len(bad)
        self.dropped = len(prompts) - len(fitting)
        self.truncated = sum(len(p.ids) > limit for p in prompts) if long_prompts == "truncate_left" else 0
        blank = dict.fromkeys(sorted(self.columns))
        self._prompts = [replace(prompt, columns={**blank, **prompt.columns}) for prompt in fitting]

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.ids) for prompt in self._prompts)

    def at(self, position: int) -> Prompt:
        """The prompt at `position` ≥ 0 of the endless order; its epoch is `position // len(self)`."""
        epoch, place = divmod(position, len(self))
        row = _epoch_order(len(self), self.seed, epoch)[place]
        return replace(self._prompts[row], position=position)

    def take(self, position: int, count: int) -> list[Prompt]:
        """The `count` prompts from `position` on, over the ends of epochs."""
        return [self.at(position + offset) for offset in range(count)]

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """The first `limit` prompts (None or 0: all) in the file's order, for evaluation; positions count from 0."""
        return [replace(p, position=place) for place, p in enumerate(self._prompts[: limit or None])]
