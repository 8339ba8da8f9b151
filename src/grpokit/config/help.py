"""Writes `grpokit train --help`: the options in groups, each with its type, its meaning and its default."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

COLUMN = 34  # where the explanations begin
KINDS = {int: "INT", float: "FLOAT", str: "TEXT", bool: ""}


class Option(NamedTuple):
    """One option as it is explained. Example: `Option("beta", "FLOAT", "Coefficient of ...", "0.0")`"""

    name: str
    kind: str
    text: str
    default: str  # "" where the text says it


def help_text(config: type, command: str) -> str:
    """The help of a command, as wide as the terminal, with titles in bold on a terminal.

    Args:
        config: the command's configuration, a dataclass made of groups.
        command: its name, such as `train`.
    """
    width = min(shutil.get_terminal_size((100, 24)).columns, 130)
    bold = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    lines = [f"usage: grpokit {command} [--OPTION VALUE ...]", "", *_wrapped(_first_line(config), width, "")]
    lines += ["Flags win over the file of --config, which wins over the defaults."]
    for title, options in option_groups(config):
        lines += ["", f"{bold[0]}{title}{bold[1]}"]
        for option in options:
            lines += _described(option, width)
    return "\n".join(lines) + "\n"


def option_groups(config: type) -> Iterator[tuple[str, list[Option]]]:
    """The groups of a configuration, in order: (title, options). A class that adds fields is a group."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)
    for cls in reversed(config.__mro__):
        texts = _attribute_texts(cls)
        options = [
            Option(
                name, _kind(hints[name]), texts.get(name, ""), _default(defaults[name], texts.get(name, ""))
            )
            for name in inspect.get_annotations(cls)
            if name in defaults
        ]
        if options:
            title = _first_line(cls).removesuffix(".")
            yield (f"{title.split(':')[0]}" if cls is config else title), options


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _attribute_texts(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, from its source."""
    module = sys.modules.get(cls.__module__)
    if module is None or not getattr(module, "__file__", None):
        return {}
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    body = next((n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__), [])
    found = {}
    for node, after in itertools.pairwise(body):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                found[name] = " ".join(str(text).split())
    return found


def _kind(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(a for a in args if a is not type(None)))
    if origin is Literal:
        return "|".join(str(a) or "''" for a in args)
    if origin is tuple:
        return f"{_kind(args[0])} ..."
    return KINDS[hint]


def _default(value: Any, text: str) -> str:
    """The default as it is shown; "" where there is none, or the text says what it means."""
    if value is None or value in ("", ()) or "(default" in text or "Default:" in text:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _described(option: Option, width: int) -> list[str]:
    flag = f"  --{option.name}"
    if option.kind:
        flag += f" {option.kind}"
    elif option.default == "on":
        flag = f"  --{option.name}, --no_{option.name}"
    text = option.text + (f" (default: {option.default})" if option.default else "")
    lines = _wrapped(text, width, " " * COLUMN)
    if len(flag) < COLUMN - 1:
        return [flag.ljust(COLUMN) + lines[0].lstrip(), *lines[1:]]
    return [*_wrapped(flag.strip(), width, "  ", " " * 6), *lines]


def _wrapped(text: str, width: int, indent: str, further: str | None = None) -> list[str]:
    following = indent if further is None else further
    return textwrap.wrap(text, max(width, 60), initial_indent=indent, subsequent_indent=following) or [""]
