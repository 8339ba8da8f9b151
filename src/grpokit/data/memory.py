"""Rows that a Python caller has in memory: a list of dicts, a `datasets.Dataset`, or anything that can be iterated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ..common.text import FROM_PYTHON
from .addressed import ItemRows
from .files import RawRow, or_error, plain_row
from .sources import Source

DIGEST_ROWS = 1000  # rows that the digest of a list looks at


def is_listed(rows: Any) -> bool:
    """Tells whether `rows` has a length and can be indexed: a list, a tuple, a `datasets.Dataset`; else it is read once."""
    return hasattr(rows, "__len__") and hasattr(rows, "__getitem__")


def names_sets(rows: Mapping[Any, Any]) -> bool:
    """Tells whether a dict holds sets by name, each a path or rows, and not the columns of a table.

    Example:
        >>> names_sets({"math": [{"prompt": "2+2="}], "code": "code.jsonl"}), names_sets({"prompt": ["2+2="]})
        (True, False)
    """
    return bool(rows) and all(isinstance(each, str | PurePath) or _holds_rows(each) for each in rows.values())


def _holds_rows(rows: Any) -> bool:
    return is_listed(rows) and len(rows) > 0 and hasattr(rows[0], "keys")


def check_rows(rows: Any, argument: str) -> None:
    """Raises ValueError naming the argument where `rows` is not something that yields rows."""
    if isinstance(rows, dict):  # a DatasetDict, or a dict of columns
        names = ", ".join(map(repr, list(rows)[:5]))
        raise ValueError(
            f"{argument}: a {type(rows).__name__} of {names}; expected rows, such as a list of dicts, or one split: "
            f"{argument}={argument.removesuffix('_dataset')}_data[{next(iter(rows), 'split')!r}]"
        )
    if is_listed(rows) and not len(rows):
        raise ValueError(f"{argument}: has no row; expected at least one")
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise ValueError(
            f"{argument}: a {type(rows).__name__}; expected a path, org/name of the Hub, a list of dicts, a "
            "datasets.Dataset, or an iterable of rows"
        )


def memory_source(rows: Iterable[Any], argument: str) -> Source:
    """Rows in memory as a dataset to read. A row is named `train_dataset[5]` in messages.

    Args:
        rows: dicts by column name.
        argument: the argument that they were given as, such as `train_dataset`.
    """

    def numbered() -> Iterator[RawRow]:
        for number, row in enumerate(rows):
            yield read_raw(row, f"{argument}[{number}]")

    def addressed() -> ItemRows:
        return ItemRows(rows, (argument + "[{}]").format)  # pyright: ignore[reportArgumentType]

    return Source(f"({type(rows).__name__})", argument, "in memory", "", (), numbered, addressed)


def read_raw(row: Any, place: str) -> RawRow:
    """One row with its place; a ValueError in place of its values says what is wrong with it."""
    return place, or_error(plain_row, row)


def describe_rows(rows: Any) -> str:
    """A name for rows in memory, for config.yaml: their number and a digest of their contents.

    Example:
        >>> describe_rows([{"prompt": "2+2="}])
        'python:list of 1 rows, 6fae0d90'
    """
    if not is_listed(rows):
        return f"{FROM_PYTHON}{type(rows).__name__}"
    count = len(rows)
    step = max(1, count // DIGEST_ROWS)
    text = json.dumps([_row(rows, i) for i in range(0, count, step)], default=repr, sort_keys=True)
    digest = hashlib.sha256(f"{count}{text}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{FROM_PYTHON}{type(rows).__name__} of {count} rows, {digest}"


def _row(rows: Sequence[Any], number: int) -> Any:
    row = rows[number]
    return dict(row) if hasattr(row, "keys") else row
