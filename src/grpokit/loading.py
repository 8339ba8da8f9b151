"""What a user names on the command line: objects (`"file.py:name"`, `"package.module:name"`), files of JSON."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import importlib
import importlib.util
import json
import math
import os
import re
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from .overlay import did_you_mean

FORMS = "file.py:name or package.module:name"
EXPECTED_JSON_LINES = "expected a .jsonl or .jsonl.gz file with one JSON object per line"


# --------------------------------------------------------------------------- objects


def load_object(spec: str, flag: str) -> Any:
    """The object `name` of a Python file or module.

    Args:
        spec: `"file.py:name"` (a path, relative to the working directory) or `"package.module:name"`.
        flag: the option that `spec` came from, for messages: `"--reward_funcs"`.

    A file is imported once for all its names, and its directory goes to the end of `sys.path`, so that it may
    import its neighbours without shadowing an installed package.

    Raises ValueError naming the flag, the spec and what exists: an unknown form, a missing file or module, a name
    that isn't there; or file:line, type and message of what the user's code raised while it was imported.
    """
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name):
        raise ValueError(f"{flag} {spec}: expected {FORMS}")
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    module = _import_file(place, spec, flag) if is_file else _import_module(place, spec, flag)
    try:
        return getattr(module, name)
    except AttributeError:
        known = _public_names(module)
        has = f"it has {', '.join(known[:12])}" if known else "it defines nothing"
        raise ValueError(f"{flag} {spec}: no `{name}` in {place}{did_you_mean(name, known)}; {has}") from None


def raised_at(error: BaseException, file: str = "") -> str:
    """`"file:line"` of the deepest line of the user's `file` that `error` passed through.

    Without such a line, the file is the first one on the way that belongs neither to Python's import system nor
    to this module. For a file that doesn't compile, it's the line of its syntax error.
    """
    ours = ("<frozen", __file__, importlib.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    own = [f for f in frames if f.filename == (file or frames[0].filename)]
    if not own and isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    last = (own or frames or traceback.extract_tb(error.__traceback__))[-1]
    return f"{last.filename}:{last.lineno}"


def one_line(text: object, limit: int = 300) -> str:
    """`text` with runs of white space made one space, cut after `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]}..."


class _FreshLoader(SourceFileLoader):
    """Compiles the file itself: a stale .pyc is never used, and none is left in the user's directory."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(place: str, spec: str, flag: str) -> ModuleType:
    path = Path(os.path.abspath(Path(place).expanduser()))
    try:
        name = _module_name(path, path.read_bytes())
    except OSError as error:  # missing, a directory, not ours to read
        raise ValueError(f"{flag} {spec}: {path}: {error.strerror}; expected {FORMS}") from error
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loader = _FreshLoader(name, str(path))
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up by name
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # SystemExit: a script without `if __name__ == "__main__"`
        del sys.modules[name]
        raise _import_failure(error, spec, flag) from error
    return module


def _import_module(place: str, spec: str, flag: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        # Only a missing `place` (or a parent of it) is a wrong spec; a missing import inside it is its own fault.
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            mend = f"; for the file write {place}.py:..." if Path(f"{place}.py").is_file() else ""
            raise ValueError(
                f"{flag} {spec}: no module named {error.name!r}{mend}; expected {FORMS}"
            ) from error
        raise _import_failure(error, spec, flag) from error


def _import_failure(error: BaseException, spec: str, flag: str) -> ValueError:
    what = f"{type(error).__name__}: {one_line(error)}"
    return ValueError(f"{raised_at(error)}: {what} (while importing {flag} {spec})")


def _module_name(path: Path, contents: bytes) -> str:
    """A name for `sys.modules`, keyed by path and contents: an edited file is a new module."""
    key = hashlib.sha256(str(path).encode() + b"\0" + contents).hexdigest()[:12]
    return f"grpokit_user_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{key}"


def _public_names(module: ModuleType) -> list[str]:
    """What a user may have meant: public names, those that the module defines itself first."""
    names = [name for name in vars(module) if not name.startswith("_")]
    return sorted(names, key=lambda name: getattr(vars(module)[name], "__module__", None) != module.__name__)


# --------------------------------------------------------------------------- JSON lines


def json_lines(path: str | os.PathLike[str], flag: str) -> Iterator[tuple[int, bytes]]:
    """(number, line). Bytes, so that a line ends at \\n alone and bad UTF-8 belongs to the line that has it."""
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"  # what it is, whatever it's called
            with gzip.open(raw) if is_gzip else nullcontext(raw) as file:
                yield from enumerate(file, 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{flag} {path}: truncated or damaged gzip ({error}); fetch it again") from error
    except OSError as error:  # missing, a directory, not ours to read
        raise ValueError(f"{flag} {path}: {error.strerror}; {EXPECTED_JSON_LINES}") from error


def json_array(path: str | os.PathLike[str], flag: str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each element of a file that is one JSON array.

    Raises ValueError naming file:line where it's not JSON: what comes after can't be told apart any more.
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
    """The value of one line of JSON, in UTF-8. Raises ValueError saying what's wrong; the caller adds file:line."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).strip().decode()
        values = _DECODER.decode(text)
        _refuse_half_a_pair(text, values)
        return values
    except UnicodeError as error:  # of decode() or encode()
        raise ValueError(f"not Unicode text ({error.reason}); {EXPECTED_JSON_LINES}") from error  # type: ignore
    except json.JSONDecodeError as error:
        what = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise ValueError(f"not JSON ({what}); {EXPECTED_JSON_LINES}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply; expected a row of plain columns") from error


def _refuse_half_a_pair(text: str, values: Any) -> None:
    """Raise UnicodeError for half a surrogate pair, which is JSON, but neither text nor tokens."""
    if "\\ud" in text.lower():
        json.dumps(values, ensure_ascii=False).encode()


def _finite(text: str) -> float:
    """A JSON number, or one of the constants that Python's parser lets through; Raises ValueError for these."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a JSON number; expected a finite one or null")
    return number


_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
