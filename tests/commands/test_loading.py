"""Objects by "file.py:name" or "package.module:name": what's loaded, and what's said where that fails."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from grpokit.common.imports import load_object, raised_at
from grpokit.common.text import one_line

FLAG = "--reward_funcs"


@pytest.fixture(autouse=True)
def _restore_imports(monkeypatch):
    """Files put their directory on sys.path and themselves into sys.modules; neither may leak between tests."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    """write(text, name) -> the path of a file with that text."""

    def write(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def fails(spec: object, *parts: str) -> ValueError:
    """Assert that loading `spec` is a ValueError of one line with all `parts`; returns it."""
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        load_object(str(spec), FLAG)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    return caught.value


# --------------------------------------------------------------------------- what works


def test_a_name_of_a_file(write):
    path = write("def f(x):\n    return x + 1\n")
    assert load_object(f"{path}:f", FLAG)(1) == 2


def test_a_path_relative_to_the_working_directory(write, monkeypatch):
    monkeypatch.chdir(write("one = 1\n").parent)
    assert load_object("mine.py:one", FLAG) == 1


def test_a_name_of_a_module():
    assert load_object("os.path:join", FLAG) is os.path.join


def test_a_file_is_imported_once_for_all_its_names(write):
    path = write("state = []\ndef get():\n    return state\n")
    assert load_object(f"{path}:get", FLAG)() is load_object(f"{path}:state", FLAG)


def test_an_edited_file_is_imported_anew(write):
    """Same length and same second: neither sys.modules nor a .pyc may give the old one."""
    assert load_object(f"{write('x = 1')}:x", FLAG) == 1
    assert load_object(f"{write('x = 2')}:x", FLAG) == 2


def test_nothing_is_left_in_the_users_directory(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    load_object(f"{write('x = 1')}:x", FLAG)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_files_of_one_name_do_not_meet(write, tmp_path):
    (tmp_path / "a").mkdir()
    first, second = write("x = __file__"), write("x = __file__", "a/mine.py")
    assert [load_object(f"{path}:x", FLAG) for path in (first, second)] == [str(first), str(second)]


def test_dataclasses_work_and_the_module_knows_its_file(write):
    # With postponed annotations, dataclasses look their module up in sys.modules.
    path = write(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass Point:\n    x: int\n    k: ClassVar[int] = 3\nplace = __file__\n"
    )
    assert load_object(f"{path}:Point", FLAG)(2).x == 2
    assert load_object(f"{path}:place", FLAG) == str(path)


def test_a_file_may_import_its_neighbour(write):
    write("value = 7\n", "neighbour_of_mine.py")
    assert load_object(f"{write('from neighbour_of_mine import value')}:value", FLAG) == 7


def test_a_neighbour_does_not_shadow_an_installed_package(write):
    write("raise RuntimeError\n", "colorsys.py")
    path = write("import colorsys\nname = colorsys.__name__\n")
    assert load_object(f"{path}:name", FLAG) == "colorsys"


def test_main_guard_does_not_run(write):
    path = write("x = 1\nif __name__ == '__main__':\n    x = 2\n")
    assert load_object(f"{path}:x", FLAG) == 1


# --------------------------------------------------------------------------- what doesn't


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", ":f", ""])
def test_an_unknown_form_is_refused(spec):
    fails(spec, f"{FLAG} {spec}: expected file.py:name or package.module:name")


def test_a_missing_file_is_named(tmp_path):
    fails(f"{tmp_path}/no.py:f", f"{FLAG} {tmp_path}/no.py:f", "No such file")


def test_a_directory_is_refused(tmp_path):
    fails(f"{tmp_path}:f", f"{FLAG} {tmp_path}:f", "Is a directory")


def test_no_such_name_in_a_file(write):
    path = write("import os\ndef correct(): ...\ndef other(): ...\n")
    fails(
        f"{path}:corect",
        f"{FLAG} {path}:corect: no `corect`",
        "did you mean 'correct'?",
        "it has correct, other",
    )


def test_no_name_at_all_is_refused(write):
    fails(f"{write('')}:f", "no `f`", "defines nothing")


def test_no_such_name_in_a_module():
    fails("os.path:joined", f"{FLAG} os.path:joined", "did you mean 'join'?")


@pytest.mark.parametrize(
    ("place", "missing"), [("no_such_module", "no_such_module"), ("os.no_such_module", "os.no_such_module")]
)
def test_a_missing_module_is_named(place, missing):
    fails(f"{place}:f", f"{FLAG} {place}:f: no module named {missing!r}", "expected file.py:name")


def test_a_file_named_as_a_module_gets_the_hint(write, monkeypatch):
    monkeypatch.chdir(write("x = 1", "no_such_module.py").parent)
    fails("no_such_module:x", "for the file write no_such_module.py:")


def test_a_file_that_raises(write):
    path = write("def g():\n    return 1 / 0\n\nx = g()\n")
    error = fails(f"{path}:x", f"{path}:2: ZeroDivisionError: division by zero", f"{FLAG} {path}:x")
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_file_that_raises_in_a_library_names_the_files_own_line(write):
    path = write("import json\n\njson.loads('{')\n")
    fails(f"{path}:x", f"{path}:3: JSONDecodeError:")


def test_a_file_that_raises_is_not_left_behind(write):
    path = write(
        "import os\nif not os.environ.get('GRPOKIT_TEST_READY'): raise RuntimeError('not ready')\nx = 1\n"
    )
    fails(f"{path}:x", "RuntimeError: not ready")
    fails(f"{path}:x", "RuntimeError: not ready")


def test_a_file_with_a_syntax_error(write):
    path = write("x = 1\ndef f(:\n")
    error = fails(f"{path}:x", f"{path}:2: SyntaxError")
    assert isinstance(error.__cause__, SyntaxError)


def test_a_file_that_is_not_text(write, tmp_path):
    (tmp_path / "mine.py").write_bytes(b"x = '\xff'\n")
    fails(f"{tmp_path}/mine.py:x", str(tmp_path / "mine.py"), "SyntaxError")


def test_a_file_with_a_missing_import(write):
    path = write("x = 1\nimport no_such_module\n")
    fails(f"{path}:x", f"{path}:2: ModuleNotFoundError: No module named 'no_such_module'")


def test_a_script_that_exits(write):
    path = write("import sys\nsys.exit(3)\n")
    fails(f"{path}:x", f"{path}:2: SystemExit: 3")


def test_a_module_that_raises(write, monkeypatch):
    path = write("import no_such_module_either\n", "raising_module.py")
    monkeypatch.syspath_prepend(path.parent)
    fails("raising_module:x", f"{path}:1: ModuleNotFoundError", f"{FLAG} raising_module:x")


def test_a_package_that_raises(write, monkeypatch, tmp_path):
    (tmp_path / "raising_package").mkdir()
    path = write("x = 1\nraise OSError('a disk')\n", "raising_package/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    fails("raising_package.part:x", f"{path}:2: OSError: a disk")


# --------------------------------------------------------------------------- helpers


def test_raised_at_without_a_line_in_the_file_is_the_deepest_of_the_first():
    def inner():
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        inner()
    line = inner.__code__.co_firstlineno + 1
    assert raised_at(caught.value, "elsewhere.py").endswith(f"{Path(__file__).name}:{line}")
    assert raised_at(caught.value) == f"{__file__}:{line}"


def test_one_line_joins_the_lines_of_a_message():
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("abcdef", 3) == "abc..."
    assert one_line("abc", 3) == "abc"
