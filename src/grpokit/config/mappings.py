"""Options that take name=value, given in other ways: as a mapping, or as JSON, which TRL's command line takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

NAME_VALUE = ("lr_scheduler_kwargs", "chat_template_kwargs", "loss_kwargs")


def with_json_read(config: Config) -> Config:
    """Returns the configuration with JSON objects written as name=value in the options that take that.

    Raises:
        ValueError: a value begins like a JSON object and is none.

    Example:
        >>> from grpokit.config.options import TrainConfig
        >>> with_json_read(TrainConfig(chat_template_kwargs=('{"enable_thinking": false}',))).chat_template_kwargs
        ('enable_thinking=false',)
    """
    changes: dict[str, Any] = {}
    for flag in NAME_VALUE:
        values = getattr(config, flag, ())
        if any(value.lstrip().startswith("{") for value in values):
            changes[flag] = tuple(item for value in values for item in _items_of_json(value, flag))
    return dataclasses.replace(config, **changes) if changes else config  # pyright: ignore


def name_values(mapping: Mapping[Any, Any]) -> list[str]:
    """Writes a mapping as on the command line.

    Example:
        >>> name_values({"enable_thinking": False, "style": "short"})
        ['enable_thinking=false', 'style=short']
    """
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in mapping.items()
    ]


def route_items(routes: Mapping[Any, Any]) -> list[str]:
    """Writes `reward_routes` as on the command line: {column: {value: rewards}}. A reward is a name or a function.

    Raises:
        ValueError: the mapping has another form.

    Example:
        >>> route_items({"data_source": {"gsm8k": "accuracy", "code": ["passes", "format"]}})
        ['data_source', 'gsm8k=accuracy', 'code=passes,format']
    """
    inner = list(routes.values())
    if len(inner) != 1 or not isinstance(inner[0], Mapping) or not inner[0]:
        raise ValueError(
            'reward_routes: expected one column with its values: {"data_source": {"gsm8k": "accuracy", "code": ["passes"]}}'
        )
    items = [str(next(iter(routes)))]
    for value, rewards in inner[0].items():
        several = rewards if isinstance(rewards, list | tuple) else [rewards]
        names = [each if isinstance(each, str) else getattr(each, "__name__", "") for each in several]
        items.append(f"{value}={','.join(names)}")
    return items


def _items_of_json(value: str, flag: str) -> list[str]:
    if not value.lstrip().startswith("{"):
        return [value]
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ValueError(
            f"--{flag} {value}: begins like JSON and is none ({error}); write name=value, or '{{\"name\": value}}'"
        ) from error
    return name_values(found)
