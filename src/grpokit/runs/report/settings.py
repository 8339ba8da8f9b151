"""The options of a run for people: those that differ from their defaults, and how a value is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...config.options import TrainConfig


class Setting(NamedTuple):
    """An option of a run, as on the command line.

    Example:
        >>> setting = Setting("loss_type", "dapo", changed=True, default="grpo")
    """

    name: str
    value: str
    changed: bool
    default: str  # "" where the default says nothing, or is the value


def settings_of(config: Mapping[str, Any]) -> list[Setting]:
    """Returns all options. Those that differ from their defaults come first.

    Example:
        >>> settings_of({"seed": 42, "loss_type": "dapo"})[0]
        Setting(name='loss_type', value='dapo', changed=True, default='grpo')
    """
    defaults = {
        field.name: _plain(field.default)
        for field in dataclasses.fields(TrainConfig)
        if field.default is not dataclasses.MISSING
    }
    settings = []
    for name, value in config.items():
        default = defaults.get(name)
        changed = name not in defaults or _plain(value) != default
        told = changed and default not in (None, "", [])
        settings.append(Setting(name, written(value), changed, written(default) if told else ""))
    return sorted(settings, key=lambda setting: not setting.changed)


def facts_of(config: Mapping[str, Any]) -> list[str]:
    """Returns the loss, the model, the datasets and the batch of a run, in a few words each.

    Example:
        >>> facts_of({"loss_type": "dapo", "model": "m", "prompts_per_step": 4, "num_generations": 8})
        ['dapo', 'm', '4 prompts × 8 completions a step']
    """
    dataset = config.get("dataset")
    named = [
        config.get("loss_type"),
        config.get("model"),
        *(dataset if isinstance(dataset, list) else [dataset]),
    ]
    prompts, generations = config.get("prompts_per_step"), config.get("num_generations")
    batch = [f"{prompts} prompts × {generations} completions a step"] if prompts and generations else []
    return [str(name) for name in named if name] + batch


def written(value: Any) -> str:
    """Writes a value as on the command line; a dash where nothing was given."""
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Converts tuples to lists, because YAML has no tuples."""
    return list(value) if isinstance(value, tuple) else value
