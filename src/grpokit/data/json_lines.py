"""Reads JSON lines and JSON arrays, and names the line of each mistake."""

from __future__ import annotations

import codecs
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from ..common.text import one_line

EXPECTED_JSON_LINES = "expected a .jsonl or .jsonl.gz file with one JSON object per line"


def json_lines(path: str | os.PathLike[str], flag: str) -> Iterator[tuple[int, bytes]]:
    r"""Yields (line number, line). Lines are bytes, so only \n ends a line, and bad UTF-8 belongs to the line that has it.

    Raises:
        ValueError: the file cannot be read. The message names `flag`.
    """
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"  # by its content, whatever its name
            with gzip.open(raw) if is_gzip else nullcontext(raw) as file:
                yield from enumerate(file, 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{flag} {path}: truncated or damaged gzip ({error}); fetch it again") from error
    except OSError as error:  # missing, a directory, or not readable
        raise ValueError(f"{flag} {path}: {error.strerror}; {EXPECTED_JSON_LINES}") from error


def is_gzipped(path: str | os.PathLike[str]) -> bool:
    """Tells whether a file is gzipped, by its content, whatever its name. One that can't be opened is not."""
    try:
        with open(path, "rb") as raw:
            return raw.read(2) == b"\x1f\x8b"
    except OSError:  # reading it says so, and names the option
        return False


def json_array(path: str | os.PathLike[str], flag: str) -> Iterator[tuple[int, Any]]:
    """Yields (line number, value) of each element of a file that is one JSON array.

    Raises:
        ValueError: it is not JSON. The message names file:line. The rest of the file cannot be read then.
    """
    data = b"".join(line for _, line in json_lines(path, flag)).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        where = f"{path}:{data[: error.start].count(10) + 1}"
        raise ValueError(f"{where}: not Unicode text ({error.reason}); save the file as UTF-8") from error
    at, line, counted, comma = text.index("[") + 1, 1, 0, False
    while True:
        at = _after_space(text, at)
        if text[at : at + 1] == "]" and not text[at + 1 :].strip():
            return
        try:
            at = _after_space(text, _after_comma(text, at)) if comma else at
            line, counted = line + text.count("\n", counted, at), at
            value, at = _DECODER.raw_decode(text, at)
            _refuse_half_a_pair(text[counted:at], value)
        except (ValueError, RecursionError) as error:
            line += text.count("\n", counted, getattr(error, "pos", counted))
            what = getattr(error, "msg", "") or one_line(error)
            raise ValueError(f"{path}:{line}: not a JSON array ({what}); expected [ objects ]") from error
        yield line, value
        comma = True


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _after_comma(text: str, at: int) -> int:
    if text[at : at + 1] != ",":
        raise json.JSONDecodeError("Expecting ',' or the end", text, at)
    return at + 1


def parse_json(line: bytes) -> Any:
    """Returns the value of one line of UTF-8 JSON. Raises ValueError with the problem; the caller adds file:line."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).strip().decode()
        values = _DECODER.decode(text)
        _refuse_half_a_pair(text, values)
        return values
    except UnicodeError as error:  # from decode() or encode()
        raise ValueError(f"not Unicode text ({error.reason}); {EXPECTED_JSON_LINES}") from error  # type: ignore
    except json.JSONDecodeError as error:
        what = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise ValueError(f"not JSON ({what}); {EXPECTED_JSON_LINES}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply; expected a row of plain columns") from error


def _refuse_half_a_pair(text: str, values: Any) -> None:
    """Raises UnicodeError for half a surrogate pair, which is valid JSON but no text."""
    if "\\ud" in text.lower():
        json.dumps(values, ensure_ascii=False).encode()


def _finite(text: str) -> float:
    """Returns a JSON number. Raises ValueError for NaN and infinity, which Python's parser accepts."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a JSON number; expected a finite one or null")
    return number


_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
