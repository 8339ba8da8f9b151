"""Reads a configuration from YAML or from keyword arguments, and writes it; mistakes are named with the nearest word."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal

from .data_rules import with_one_length
from .hints import hint
from .mappings import name_values, route_items, with_json_read

PLAIN = (str, int, float, PurePath)  # what an option of text may be written as


def load_yaml(cls: type, path: str) -> Any:
    """`cls` with the values of a YAML file laid over its defaults.

    Raises ValueError naming the file, the key and the nearest valid one where a key is unknown or a value has
    the wrong type.
    """
    return with_options(cls(), read_yaml(path), f"--config {os.path.expanduser(path)}: ")


def read_yaml(path: str) -> dict[str, Any]:
    """Reads the options of a YAML file by name. Raises ValueError naming a file that isn't there or isn't YAML."""
    return _by_option(read_mapping(path, "--config"))


def read_mapping(path: str, flag: str) -> dict[str, Any]:
    """Reads a YAML file of `name: value` lines.

    Raises ValueError naming the flag, and a file that isn't there or has something else.
    """
    path = os.path.expanduser(path)
    where = f"{flag} {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file")
    try:
        return _parse(Path(path).read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


def from_yaml(cls: type, text: str, path: str) -> Any:
    """`cls` from YAML text; `path` is where it's from, for messages."""
    where = f"--config {path}"
    return with_options(cls(), _by_option(_parse(text, where)), f"{where}: ")


def _by_option(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in values.items()}


def _parse(text: str, where: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{where}{line}: not YAML: {error.problem}; expected `name: value` lines") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected `name: value` lines, got a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def with_options(config: Any, options: Mapping[str, Any], where: str = "") -> Any:
    """A copy of `config` with `options` by name, converted to the types of their fields.

    `where` begins each message. Raises ValueError naming an unknown option with the nearest known one, or a value of the
    wrong type.

    Example:
        >>> from grpokit.config.options import TrainConfig
        >>> with_options(TrainConfig(), {"beta": 1, "reward_weights": [1, 2]}).reward_weights
        (1.0, 2.0)
    """
    hints = typing.get_type_hints(type(config))
    names = {f.name for f in dataclasses.fields(config)}
    for key in options.keys() - names:
        raise ValueError(f"{where}unknown option {key!r}{hint(key, type(config))}")
    config = with_one_length(config, (key for key, value in options.items() if value))
    if isinstance(routes := options.get("reward_routes"), Mapping):
        options = {**options, "reward_routes": route_items(routes)}
    return with_json_read(
        dataclasses.replace(
            config, **{key: _coerce(value, hints[key], f"{where}{key}") for key, value in options.items()}
        )
    )


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` says; YAML 1.1 reads 1e-6 as a string, so numbers are converted from text too."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        value = "none" if value is None and "none" in args else value
        if not any(value == arg and type(value) is type(arg) for arg in args):  # True == 1
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if isinstance(value, Mapping):  # name=value on the command line
            value = name_values(value)
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(item, args[0], where) for item in items)
    if isinstance(value, bool) != (hint is bool) or (hint is str and not isinstance(value, PLAIN)):
        raise ValueError(f"{where}: expected {_kind(hint)}, got {value!r}")
    try:
        number = hint(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected {_kind(hint)}, got {value!r}") from error
    if hint is int and not isinstance(value, PurePath) and float(value) != number:
        raise ValueError(f"{where}: expected a whole number, got {value!r}")
    return number


def _kind(hint: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def to_yaml(config: Any, only_changed: bool = False) -> str:
    """The resolved configuration as YAML that `--config` reads back; with `only_changed`, what isn't at its default."""
    import yaml

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    values.pop("config", None)  # everything of that file is in here
    if values.get("num_train_epochs"):
        values.pop("max_steps")  # it follows from the data
    if only_changed:
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        values = {name: value for name, value in values.items() if getattr(config, name) != defaults[name]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
