"""What a row of a dataset says: its prompt, and the columns that go to the rewards.

A row states its prompt in the first of these columns that isn't null; every other column goes to the rewards:

* `prompt`: text, tokenized as it stands; or a list of messages, as in TRL and verl. Messages that end with an
  assistant turn are a prefill: the completion continues that turn.
* `messages`: a chat, as in ms-swift. A last assistant turn is the reference answer: it's left out of the prompt,
  and its text becomes the column `solution` unless the row has one.
* `question`: text; one user message if the tokenizer has a chat template, plain text otherwise.

verl's `reward_model.ground_truth` becomes the column `ground_truth` unless the row has one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ..common.console import counting_if_slow
from ..common.text import one_line
from ..types import SAMPLED, Messages
from .json_lines import EXPECTED_JSON_LINES
from .sources import Source, open_dataset

STATEMENTS = ("prompt", "messages", "question")
EXPECTED_ROW = "expected an object with a column `prompt`, `messages` or `question`"
EXPECTED_IN = {
    "prompt": "text, or a list of messages",
    "messages": 'a list of messages like {"role": "user", "content": "text"}',
    "question": "text",
}


@dataclass(frozen=True, eq=False)
class DatasetRow:
    """One valid row, not yet tokenized. Example: `DatasetRow("2 + 2 =", {"answer": "4"}, "t.jsonl:1", "prompt")`"""

    content: str | Messages
    columns: Mapping[str, Any]  # every other column
    source: str  # "file:line"
    statement: str  # the column that stated the prompt: one of STATEMENTS


def read_rows(
    data: str | PathLike[str] | Source,
    skip_bad_rows: bool = False,
    flag: str = "--dataset",
    *,
    limit: int = 0,
) -> tuple[list[DatasetRow], list[str]]:
    """The rows of a dataset, and what was wrong with the rows that were skipped.

    Args:
        data: what `open_dataset` found, or a name for it to find.
        skip_bad_rows: leave malformed rows out, instead of stopping at the first.
        flag: the option that named the dataset, for messages.
        limit: read this many valid rows, and no further; 0: all.

    Raises ValueError: `FILE:LINE: ...` at the first malformed row unless `skip_bad_rows`; naming `flag` for a
    file that can't be read to its end (also with `skip_bad_rows`) or that has no valid row.
    """
    source = data if isinstance(data, Source) else open_dataset(data, flag)
    rows, skipped = [], []
    with counting_if_slow(f"reading {source.flag} {source.name}", limit or None) as progress:
        for place, values in source.rows():
            try:
                rows.append(parse_row(values, place))
            except ValueError as error:
                if not skip_bad_rows:
                    fix = "or leave such rows out with --skip_bad_rows"
                    raise ValueError(f"{place}: {error}; {fix}") from error
                skipped.append(f"{place}: {error}")
            progress(len(rows))
            if limit and len(rows) == limit:
                break
    if not rows:
        why = f"all {len(skipped)} rows are malformed, the first: {skipped[0]}" if skipped else "is empty"
        expected = EXPECTED_JSON_LINES if source.kind == "JSON lines" else EXPECTED_ROW
        raise ValueError(f"{source.flag} {source.name}: {why}; {expected}")
    return rows, skipped


def describe_dataset(source: Source, rows: Sequence[DatasetRow]) -> str:
    """What was found and how it is read, in one line for the start of the run."""
    split = f", split {source.split}" if source.split else ""
    shapes = Counter(map(_shape, rows))
    shown = "; ".join(
        f"{shape}" + (f" ({n:,} rows)" if len(shapes) > 1 else "") for shape, n in shapes.items()
    )
    columns = ", ".join(sorted({name for row in rows for name in row.columns})) or "none beside the prompt"
    left_out = (
        f"; not read, as no split is in their names: {', '.join(source.left_out)}" if source.left_out else ""
    )
    return f"{source.flag} {source.name}: {len(rows):,} rows ({source.kind}{split}); {shown}; columns: {columns}{left_out}"


def _shape(row: DatasetRow) -> str:
    kind = "text" if isinstance(row.content, str) else "a chat"
    if _is_verl(row.columns):
        return f"verl's shape, `{row.statement}` is {kind}, reward_model.ground_truth is `ground_truth`"
    if row.statement == "messages":
        return "`messages`, as in ms-swift"
    if row.statement == "question":
        return "`question`, a user's message where the tokenizer has a chat template"
    return f"`prompt` is {kind}, as in TRL"


def _is_verl(columns: Mapping[str, Any]) -> bool:
    judged = columns.get("reward_model")
    return isinstance(judged, Mapping) and "ground_truth" in judged


def named_row(values: Any, place: str) -> DatasetRow:
    """Reads one row, and names its place in an error."""
    try:
        return parse_row(values, place)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def parse_row(values: Any, source: str) -> DatasetRow:
    """Reads the prompt and the columns of one row. Raises ValueError saying what is wrong; the caller adds file:line."""
    if isinstance(values, ValueError):
        raise values
    if not isinstance(values, dict):
        raise ValueError(f"the row is {_show(values)}; {EXPECTED_ROW}")
    values = {name: value for name, value in values.items() if value is not None or name not in STATEMENTS}
    statement = next((name for name in STATEMENTS if name in values), None)
    if statement is None:
        raise ValueError(f"no prompt; {EXPECTED_ROW}, found {', '.join(map(repr, values)) or 'none'}")
    content: Any = values.pop(statement)
    columns = _columns(values)
    if statement == "messages" or (statement == "prompt" and isinstance(content, list)):
        content = _checked_messages(statement, content)
        if statement == "messages":
            content, columns = _split_reference(content, columns)
    elif not isinstance(content, str) or not content.strip():
        raise ValueError(f"`{statement}` is {_show(content)}; expected {EXPECTED_IN[statement]}")
    return DatasetRow(content, columns, source, statement)


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    """What the rewards get. Raises ValueError for a column that would hide an argument of theirs."""
    taken = next((name for name in SAMPLED if name in values), None)
    if taken:
        raise ValueError(f"the column `{taken}` hides what rewards get under that name; rename it")
    if _is_verl(values) and values.get("ground_truth") is None:
        return {**values, "ground_truth": values["reward_model"]["ground_truth"]}
    return values


def _show(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False, default=repr), 80)


def _checked_messages(statement: str, messages: Any) -> Messages:
    """The messages without fields that are null, which Parquet adds where other messages have them.

    Raises ValueError unless it's a list of messages with some text in it.
    """
    expected = f"expected {EXPECTED_IN['messages']}"
    if not isinstance(messages, list):
        raise ValueError(f"`{statement}` is {_show(messages)}; {expected}")
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, dict) else {}
        if not (isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str)):
            raise ValueError(f"message {number} of `{statement}` is {_show(message)}; {expected}")
    if not any(message["content"].strip() for message in messages):
        raise ValueError(f"`{statement}` has no text in it: {_show(messages)}; {expected}")
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


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
