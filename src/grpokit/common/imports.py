"""Imports objects that a user names on the command line: `"file.py:name"` or `"package.module:name"`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from .importable import publish
from .text import did_you_mean, one_line

FORMS = "file.py:name or package.module:name"


# --------------------------------------------------------------------------- objects


def load_object(spec: str, flag: str) -> Any:
    """Loads the object `name` of a Python file or module.

    A file is imported once for all its names, and spawned processes can import it too. Its directory goes to the end of
    `sys.path`, so that it can import its neighbours without shadowing an installed package.

    Args:
        spec: `"file.py:name"` (a path, relative to the working directory) or `"package.module:name"`.
        flag: the option that `spec` came from, for messages: `"--reward_funcs"`.

    Returns:
        The object.

    Raises:
        ValueError: the spec has another form, or the file, module or name does not exist, or the user's code raised while
            it was imported. The message names the flag and the spec, or file:line of the user's code.
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
    """Returns `"file:line"` of the deepest line of the user's `file` that `error` passed through.

    Without such a line, it uses the first file that belongs neither to Python's import system nor to this module. For a file
    that does not compile, it is the line of the syntax error.
    """
    ours = ("<frozen", __file__, importlib.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    own = [f for f in frames if f.filename == (file or frames[0].filename)]
    if not own and isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    last = (own or frames or traceback.extract_tb(error.__traceback__))[-1]
    return f"{last.filename}:{last.lineno}"


def raised_in(error: BaseException, function: Any) -> str:
    """`"file:line"` of the deepest line of a user's function, or of its file, that `error` passed through."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return raised_at(error, code.co_filename if code else "")


class _FreshLoader(SourceFileLoader):
    """Compiles the file itself: a stale .pyc is never used, and none is written to the user's directory."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(place: str, spec: str, flag: str) -> ModuleType:
    path = Path(os.path.abspath(Path(place).expanduser()))
    try:
        contents = path.read_bytes()
        name = _module_name(path, contents)
    except OSError as error:  # missing, a directory, or not readable
        raise ValueError(f"{flag} {spec}: {path}: {error.strerror}; expected {FORMS}") from error
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loader = _FreshLoader(name, str(path))
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module  # before it runs, because dataclasses and pickle look their module up by name
    publish(name, path, contents)  # before it runs too, because it may start a pool
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
        # Only a missing `place` (or a parent of it) is a wrong spec. A missing import inside it is the user code's
        # own error.
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            fix = f"; for the file write {place}.py:..." if Path(f"{place}.py").is_file() else ""
            raise ValueError(
                f"{flag} {spec}: no module named {error.name!r}{fix}; expected {FORMS}"
            ) from error
        raise _import_failure(error, spec, flag) from error


def _import_failure(error: BaseException, spec: str, flag: str) -> ValueError:
    what = f"{type(error).__name__}: {one_line(error)}"
    return ValueError(f"{raised_at(error)}: {what} (while importing {flag} {spec})")


def _module_name(path: Path, contents: bytes) -> str:
    """Returns a name for `sys.modules`, keyed by path and contents: an edited file is a new module."""
    key = hashlib.sha256(str(path).encode() + b"\0" + contents).hexdigest()[:12]
    return f"grpokit_user_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{key}"


def _public_names(module: ModuleType) -> list[str]:
    """Returns the names that a user may have meant: public ones, first those defined in the module itself."""
    names = [name for name in vars(module) if not name.startswith("_")]
    return sorted(names, key=lambda name: getattr(vars(module)[name], "__module__", None) != module.__name__)
