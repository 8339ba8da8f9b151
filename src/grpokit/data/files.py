"""Reads the rows of one file, each with its place: JSON, CSV, Parquet or Arrow, chosen by the name's ending."""

from __future__ import annotations

import csv
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..common.text import one_line
from .json_lines import json_array, json_lines, parse_json

# (place, values) of a row. A ValueError instead of values says what is wrong with it.
RawRow = tuple[str, Any]

KINDS = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".json": "JSON",
    ".jsonl": "JSON lines",
    ".arrow": "Arrow",
}


def suffix_of(path: Path) -> str:
    """Returns the ending that says a file's kind: `.jsonl` for `a.jsonl.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def kind_of(path: Path) -> str:
    """Returns a file's kind, one of the values of KINDS."""
    return KINDS.get(suffix_of(path), "JSON lines")


def file_rows(path: Path, flag: str) -> Iterator[RawRow]:
    """Yields the rows of one file. Raises ValueError naming `flag` if it cannot be read to its end."""
    kind = kind_of(path)
    if kind == "Parquet":
        return _parquet_rows(path, flag)
    if kind == "Arrow":
        return _arrow_rows(path, flag)
    if kind in ("CSV", "TSV"):
        return _csv_rows(path, flag, "," if kind == "CSV" else "\t")
    if kind == "JSON" and begins_with(b"[", path, flag):
        return _numbered(path, json_array(path, flag))
    return _json_lines_rows(path, flag)


def _numbered(path: Path, rows: Iterator[tuple[int, Any]]) -> Iterator[RawRow]:
    return ((f"{path}:{number}", values) for number, values in rows)


def _json_lines_rows(path: Path, flag: str) -> Iterator[RawRow]:
    for number, line in json_lines(path, flag):
        if line.strip():
            yield f"{path}:{number}", or_error(parse_json, line)


def or_error(read: Callable[[Any], Any], value: Any) -> Any:
    """Returns `read(value)`, or the ValueError that it raises, so that reading goes on after a bad row."""
    try:
        return read(value)
    except ValueError as error:
        return error


def begins_with(mark: bytes, path: Path, flag: str) -> bool:
    """Tells whether the first text of a file, behind white space, is `mark`."""
    texts = (line.removeprefix(b"\xef\xbb\xbf").strip() for _, line in json_lines(path, flag))
    return next((text.startswith(mark) for text in texts if text), False)


def _csv_rows(path: Path, flag: str, delimiter: str) -> Iterator[RawRow]:
    """Yields the rows of a table. A row may span several lines; its place is the first of them."""
    # A prompt may be longer than the default limit of 131,072 characters.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(_decoded(path, flag), delimiter=delimiter, strict=True)
        names = next(reader, None)
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"{path}:1: two columns have one name: {', '.join(names)}; rename one")
        first = reader.line_num + 1
        for cells in reader:
            if cells:
                row = dict(zip(names or (), (cell or None for cell in cells), strict=False))
                wrong = ValueError(f"{len(cells)} cells; expected {len(names or ())}, one for each column")
                yield f"{path}:{first}", row if len(cells) == len(names or ()) else wrong
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: not {kind_of(path)} to its end ({error}); expected quotes in pairs"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _decoded(path: Path, flag: str) -> Iterator[str]:
    """Yields lines of text. A line that is not UTF-8 ends the file, because cells can no longer be told from rows."""
    for number, line in json_lines(path, flag):
        try:
            yield line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error


def _parquet_rows(path: Path, flag: str) -> Iterator[RawRow]:
    """Yields rows with their number in the file, from 1."""
    parquet = import_package("pyarrow.parquet", flag, str(path), "Parquet is read")
    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            for number, values in enumerate(chain.from_iterable(map(_batch_rows, batches)), 1):
                yield f"{path}:{number}", values
    except (OSError, import_package("pyarrow", flag, str(path), "Parquet is read").ArrowException) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise ValueError(f"{flag} {path}: cannot be read as Parquet ({what})") from error


def _arrow_rows(path: Path, flag: str) -> Iterator[RawRow]:
    """Yields rows with their number in the file, from 1. `datasets` writes streams; Feather is the other format."""
    arrow = import_package("pyarrow", flag, str(path), "Arrow is read")
    try:
        with arrow.memory_map(str(path)) as file:
            is_feather = file.read(6) == b"ARROW1"
            file.seek(0)
            table = arrow.ipc.open_file(file).read_all() if is_feather else arrow.ipc.open_stream(file)
            batches = table.to_batches(1024) if is_feather else table
            for number, values in enumerate(chain.from_iterable(map(_batch_rows, batches)), 1):
                yield f"{path}:{number}", values
    except (OSError, arrow.ArrowException) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise ValueError(f"{flag} {path}: cannot be read as Arrow ({what})") from error


def _batch_rows(batch: Any) -> list[Any]:
    try:
        return [or_error(plain, values) for values in batch.to_pylist()]
    except UnicodeDecodeError:  # in some row of the batch: reading the rows one by one finds it
        alone = (batch.slice(at, 1) for at in range(len(batch)))
        return [or_error(lambda one: plain(one.to_pylist()[0]), one) for one in alone]


def plain(value: Any) -> Any:
    """Returns a value as JSON would have it: NaN is null.

    Raises:
        ValueError: infinity, or bytes that are not text.
    """
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError(f"{value} is not a number that JSON has; expected a finite one or null")
    return value


def plain_row(row: Any) -> Any:
    """Converts a row in memory to plain Python values. Anything but a mapping is returned unchanged, and refused later."""
    return plain(dict(row)) if hasattr(row, "keys") else row


def import_package(module: str, flag: str, name: str, why: str) -> Any:
    """Imports a module of the extra `datasets`.

    Args:
        module: the module.
        flag: the option that needs it, for messages.
        name: the option's value.
        why: what it is for.

    Returns:
        The module.

    Raises:
        ValueError: its package isn't installed. The message says how to install it.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != top:
            raise
        raise ValueError(
            f"{flag} {name}: {why} by the package {top}, which isn't installed; pip install grpokit[datasets]"
        ) from error
