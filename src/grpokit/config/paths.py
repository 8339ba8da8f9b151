"""Options that are paths: `~` is the home directory, and two spellings of one path are the same."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, TypeVar

from ..data.names import split_name, split_weight

Config = TypeVar("Config")

# Options whose value is a path, or may begin with one (`file.py:name`, `folder:configuration`).
PATHS = frozenset(
    {
        *(
            "config",
            "model",
            "models",
            "ref_model",
            "dataset",
            "eval_dataset",
            "output_dir",
            "resume_from_checkpoint",
        ),
        *("reward_funcs", "sampler", "advantage_estimator", "group_filter", "optim", "surrogate"),
        *(
            "tools",
            "environment",
            "tool_parser",
            "chat_template",
            "sampler_order",
            "judge_rubric",
            "judge_cache",
        ),
        *("file", "run", "output", "output_file"),
    }
)


def expand_home(config: Config) -> Config:
    """Returns the configuration with `~` written out in every option that is a path.

    Example:
        >>> from grpokit.config.options import TrainConfig
        >>> expand_home(TrainConfig(model="~/m")).model == os.path.expanduser("~/m")
        True
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, field.name)
        if field.name in PATHS and isinstance(value, str):
            changes[field.name] = _at_home(value)
        elif field.name in PATHS and isinstance(value, tuple):
            changes[field.name] = tuple(_at_home(item) for item in value)
    return dataclasses.replace(config, **changes)  # pyright: ignore[reportArgumentType, reportReturnType]


def _at_home(value: str) -> str:
    name, place = split_name(value)
    return f"{name}={os.path.expanduser(place)}" if name else os.path.expanduser(place)


def split_path(value: str) -> tuple[str, str]:
    """Returns the path that an option's value names, and the rest.

    Example:
        >>> split_path("file.py:name"), split_path("game=game.py:Game")
        (('file.py', ':name'), ('game.py', ':Game of game'))
    """
    name, place = split_name(value)
    place, weight = split_weight(place)
    own = (f":{weight}" if weight else "") + (f" of {name}" if name else "")
    path, colon, rest = place.rpartition(":")
    if os.path.exists(place) or not path:
        return place, own
    return path, f"{colon}{rest}{own}"


def resolved(value: str) -> str:
    """Returns an option's value with its path absolute, without symbolic links and without a slash at its end.

    Example:
        >>> resolved("/models/m12/") == resolved("/models/x/../m12")
        True
    """
    path, rest = split_path(value)
    return os.path.realpath(os.path.expanduser(path)) + rest
