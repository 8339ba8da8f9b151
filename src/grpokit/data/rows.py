"""What a row of a dataset says: its prompt, and the columns that go to the rewards.

A row states its prompt in the first of these columns that isn't null; every other column goes to the rewards:

* the one that --prompt_column names: text is one user message if the tokenizer has a chat template, plain text
  otherwise; a list of messages is a chat, as in `prompt`.

* `prompt`: text, tokenized as it stands; or a list of messages, as in TRL and verl. Messages that end with an
  assistant turn are a prefill: the completion continues that turn.
* `messages`: a chat, as in ms-swift. A last assistant turn is the reference answer: it's left out of the prompt,
  and its text becomes the column `solution` unless the row has one.
* `question`: text; one user message if the tokenizer has a chat template, plain text otherwise.

A list of messages may be written as JSON, in a column of text. verl's `reward_model.ground_truth` becomes the column
`ground_truth` unless the row has one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ..common.console import counting_if_slow
from ..common.text import did_you_mean, one_line
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
    statement: str  # the column that stated the prompt: --prompt_column, or one of STATEMENTS
    asks: bool = False  # whether its text is a user's message where the tokenizer has a chat template
    as_json: bool = False  # whether its messages were written as JSON


def read_rows(
    data: str | PathLike[str] | Source,
    skip_bad_rows: bool = False,
    flag: str = "--dataset",
    *,
    limit: int = 0,
    prompt_column: str = "",
) -> tuple[list[DatasetRow], list[str]]:
    """The rows of a dataset, and what was wrong with the rows that were skipped.

    Args:
        data: what `open_dataset` found, or a name for it to find.
        skip_bad_rows: leave malformed rows out, instead of stopping at the first.
        flag: the option that named the dataset, for messages.
        limit: read this many valid rows, and no further; 0: all.
        prompt_column: the column that states the prompt, before the usual ones.

    Raises ValueError: `FILE:LINE: ...` at the first malformed row unless `skip_bad_rows`; naming `flag` for a
    file that can't be read to its end (also with `skip_bad_rows`) or that has no valid row.
    """
    source = data if isinstance(data, Source) else open_dataset(data, flag)
    rows, skipped = [], []
    with counting_if_slow(f"reading {source.flag} {source.name}", limit or None) as progress:
        for place, values in source.rows():
            try:
                rows.append(parse_row(values, place, prompt_column))
            except ValueError as error:
                if not skip_bad_rows:
                    fix = "or leave such rows out with --skip_bad_rows"
                    raise ValueError(f"{place}: {error}; {fix}") from error
                skipped.append(f"{place}: {error}")
            progress(len(rows))
            if limit and len(rows) == limit:
                break
    if not rows:
        expected = EXPECTED_JSON_LINES if source.kind == "JSON lines" else EXPECTED_ROW
        why = f"is empty; {expected}"
        if skipped:  # the first says what was expected
            why = f"all {len(skipped)} rows are malformed, the first: {skipped[0]}"
        raise ValueError(f"{source.flag} {source.name}: {why}")
    return rows, skipped


def describe_dataset(source: Source, rows: Sequence[DatasetRow], lazily: int = 0) -> str:
    """What was found and how it is read, in one line for the start of the run.

    Args:
        source: the dataset.
        rows: its rows; of a dataset that is read lazily, those that were read at the start.
        lazily: the number of all rows, where they are read when a step needs them.
    """
    split = f", split {source.split}" if source.split else ""
    shapes = Counter(map(_shape, rows))
    shown = "; ".join(
        f"{shape}" + (f" ({n:,} rows)" if len(shapes) > 1 else "") for shape, n in shapes.items()
    )
    columns = ", ".join(sorted({name for row in rows for name in row.columns})) or "none beside the prompt"
    left_out = (
        f"; not read, as no split is in their names: {', '.join(source.left_out)}" if source.left_out else ""
    )
    unread = f"; read when a step needs them: only {len(rows):,} rows are checked yet" if lazily else ""
    return (
        f"{source.flag} {source.name}: {lazily or len(rows):,} rows ({source.kind}{split}); {shown}; columns: {columns}"
        f"{left_out}{unread}"
    )


def _shape(row: DatasetRow) -> str:
    kind = "text" if isinstance(row.content, str) else "a chat" + ", written as JSON" * row.as_json
    if _is_verl(row.columns):
        return f"verl's shape, `{row.statement}` is {kind}, reward_model.ground_truth is `ground_truth`"
    if row.asks and isinstance(row.content, str):
        return f"`{row.statement}`, a user's message where the tokenizer has a chat template"
    if row.statement == "messages":
        return "`messages`, as in ms-swift" + ", written as JSON" * row.as_json
    return f"`{row.statement}` is {kind}" + ", as in TRL" * (row.statement == "prompt")


def _is_verl(columns: Mapping[str, Any]) -> bool:
    judged = columns.get("reward_model")
    return isinstance(judged, Mapping) and "ground_truth" in judged


def named_row(values: Any, place: str, prompt_column: str = "") -> DatasetRow:
    """Reads one row, and names its place in an error."""
    try:
        return parse_row(values, place, prompt_column)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def parse_row(values: Any, source: str, prompt_column: str = "") -> DatasetRow:
    """Reads the prompt and the columns of one row. Raises ValueError saying what is wrong; the caller adds file:line."""
    if isinstance(values, ValueError):
        raise values
    if not isinstance(values, dict):
        raise ValueError(f"the row is {_show(values)}; {EXPECTED_ROW}")
    named = (prompt_column, *STATEMENTS) if prompt_column else STATEMENTS
    values = {name: value for name, value in values.items() if value is not None or name not in named}
    statement = next((name for name in named if name in values), None)
    if statement is None:
        expected = f"{EXPECTED_ROW}, or `{prompt_column}`" if prompt_column else EXPECTED_ROW
        hint = did_you_mean(prompt_column, values) or "; --prompt_column names another column" * bool(values)
        raise ValueError(f"no prompt; {expected}, found {', '.join(map(repr, values)) or 'none'}{hint}")
    written: Any = values.pop(statement)
    is_chosen = statement == prompt_column
    is_turns = statement == "messages" and not is_chosen
    is_text = statement == "question" and not is_chosen
    content = written if is_text else _from_json(written)
    columns = _columns(values)
    if is_turns or (isinstance(content, list) and not is_text):
        content = _checked_messages(statement, content)
        if is_turns:
            content, columns = _split_reference(content, columns)
    elif not isinstance(content, str) or not content.strip():
        expected = EXPECTED_IN.get(statement, EXPECTED_IN["prompt"])
        raise ValueError(f"`{statement}` is {_show(content)}; expected {expected}")
    as_json = isinstance(written, str) and not isinstance(content, str)
    return DatasetRow(content, columns, source, statement, is_chosen or is_text, as_json)


def _from_json(content: Any) -> Any:
    """Returns the messages that a text holds as JSON; anything else as it is."""
    if not (isinstance(content, str) and content.lstrip()[:1] == "[" and content.rstrip()[-1:] == "]"):
        return content
    try:
        found = json.loads(content)
    except ValueError:  # a text that begins with a bracket
        return content
    is_chat = isinstance(found, list) and all(isinstance(item, dict) and "role" in item for item in found)
    return found if found and is_chat else content


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
