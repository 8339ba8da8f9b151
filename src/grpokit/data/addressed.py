"""Rows that are read by their number, without reading the others: lines of a file, rows of an Arrow table, rows in memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..common.text import one_line
from .files import RawRow, begins_with, import_package, kind_of, or_error, plain, plain_row
from .json_lines import EXPECTED_JSON_LINES, is_gzipped, parse_json

BLOCK = 16 << 20  # bytes of a file that are searched for line ends at once
WHITE = np.frombuffer(b" \t\r\n\v\f", np.uint8)
ADDRESSABLE = "JSON lines that are not gzipped, Parquet, Arrow, a folder that save_to_disk wrote, or the Hub"


class AddressedRows(Protocol):
    """Rows by their number, from 0, in any order and as often as one likes."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        ...

    def row(self, number: int) -> RawRow:
        """Reads one row, with its place."""
        ...


class ItemRows:
    """The rows of a list or of a `datasets.Dataset`.

    Args:
        items: the rows: dicts by column name.
        place: (a row's number) → its place, for messages.

    Example:
        >>> ItemRows([{"prompt": "31="}], "train_dataset[{}]".format).row(0)
        ('train_dataset[0]', {'prompt': '31='})
    """

    def __init__(self, items: Sequence[Any], place: Callable[[int], str]) -> None:
        self.items, self.place = items, place

    def __len__(self) -> int:
        return len(self.items)

    def row(self, number: int) -> RawRow:
        """Reads one row, with its place."""
        return self.place(number), or_error(plain_row, self.items[number])


class LineRows:
    """The rows of a JSON-lines file, found by an index of the bytes at which its lines begin. Blank lines are no rows."""

    def __init__(self, path: Path, flag: str) -> None:
        self.path, self.flag = path, flag
        try:
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._starts, doubtful = line_starts(self._file)
        except OSError as error:
            raise ValueError(f"{flag} {path}: {error.strerror}; {EXPECTED_JSON_LINES}") from error
        blank = [line for line in doubtful.tolist() if not self._line(line).strip()]
        self._lines = np.delete(np.arange(len(self._starts) - 1, dtype=np.int64), blank)

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, number: int) -> RawRow:
        """Reads one row, with its place."""
        line = int(self._lines[number])
        return f"{self.path}:{line + 1}", or_error(parse_json, self._line(line))

    def _line(self, line: int) -> bytes:
        start, end = self._starts[line : line + 2].tolist()
        try:
            return os.pread(self._file, end - start, start)
        except OSError as error:
            raise ValueError(f"{self.flag} {self.path}:{line + 1}: {error.strerror}") from error


def line_starts(file: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the lines of an open file.

    Returns:
        The bytes at which the lines begin, then the file's size [lines + 1]; and the numbers of the lines that begin with
        white space and so may be blank.
    """
    starts, doubtful, size, begins = [], [], 0, True
    lines = 0
    while block := os.pread(file, BLOCK, size):
        data = np.frombuffer(block, np.uint8)
        places = np.flatnonzero(data == ord("\n")) + 1
        begun = np.concatenate([[0] if begins else [], places[places < len(data)]]).astype(np.int64)
        doubtful.append(lines + np.flatnonzero(np.isin(data[begun], WHITE)))
        starts.append(size + begun)
        begins, lines, size = block.endswith(b"\n"), lines + len(begun), size + len(block)
    joined = np.concatenate([*starts, [size]]).astype(np.int64)
    return joined, np.concatenate([*doubtful, []]).astype(np.int64)


class ArrowRows:
    """The rows of an Arrow file, mapped into memory: in the stream format, which `datasets` writes, or in Feather's."""

    def __init__(self, path: Path, flag: str) -> None:
        arrow = import_package("pyarrow", flag, str(path), "Arrow is read")
        self.path = path
        try:
            file = arrow.memory_map(str(path))
            is_feather = file.read(6) == b"ARROW1"
            file.seek(0)
            table = (arrow.ipc.open_file if is_feather else arrow.ipc.open_stream)(file).read_all()
        except (OSError, arrow.ArrowException) as error:
            raise ValueError(f"{flag} {path}: cannot be read as Arrow ({one_line(error)})") from error
        self._batches = table.to_batches()
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, number: int) -> RawRow:
        """Reads one row, with its place."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        batch = self._batches[which]
        one = batch.slice(number - (int(self._ends[which]) - len(batch)), 1)
        return f"{self.path}:{number + 1}", or_error(lambda rows: plain(rows.to_pylist()[0]), one)


class JoinedRows:
    """The rows of several parts, one part after the other."""

    def __init__(self, parts: Sequence[AddressedRows]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, number: int) -> RawRow:
        """Reads one row, with its place."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        return self.parts[which].row(number - (int(self._ends[which]) - len(self.parts[which])))


class FirstRows:
    """The first rows of others. Example: `FirstRows(rows, 100)`"""

    def __init__(self, rows: AddressedRows, count: int) -> None:
        self.rows, self.count = rows, min(count, len(rows))

    def __len__(self) -> int:
        return self.count

    def row(self, number: int) -> RawRow:
        """Reads one row, with its place."""
        return self.rows.row(number)


def is_addressable(path: Path, flag: str) -> bool:
    """Tells whether the rows of a file can be read by their number."""
    kind = kind_of(path)
    if kind == "JSON" and begins_with(b"[", path, flag):
        return False
    return kind in ("Parquet", "Arrow") or (kind in ("JSON", "JSON lines") and not is_gzipped(path))


def addressed_file(path: Path, flag: str) -> AddressedRows:
    """Opens the rows of an addressable file.

    `datasets` writes the rows of a Parquet file to its cache, once, so that they can be mapped into memory.

    Raises:
        ValueError: it can't be read, or a package is missing.
    """
    kind = kind_of(path)
    if kind == "Arrow":
        return ArrowRows(path, flag)
    if kind != "Parquet":
        return LineRows(path, flag)
    datasets = import_package("datasets", flag, str(path), "rows of Parquet are read one by one")
    try:
        rows = datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # the disk, pyarrow and datasets each raise types of their own
        raise ValueError(
            f"{flag} {path}: cannot be read as Parquet ({type(error).__name__}: {one_line(error)})"
        ) from error
    return ItemRows(rows, lambda number: f"{path}:{number + 1}")
