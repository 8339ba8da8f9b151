"""Options that are paths: `~` is the home directory, two spellings of one path are the same, and others see its name only."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any, TypeVar

from ..common.hub import is_hub_model
from ..common.text import FROM_PYTHON
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
            "teacher",
            "dataset",
            "eval_dataset",
            "output_dir",
            "resume_from_checkpoint",
        ),
        *("reward_funcs", "eval_reward_funcs", "sampler", "advantage_estimator", "group_filter"),
        *("optim", "surrogate", "tools", "environment", "tool_parser", "chat_template"),
        *("sampler_order", "judge_rubric", "judge_cache"),
        *("file", "run", "runs", "variants", "output", "output_file"),
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


def public_name(value: str) -> str:
    """Returns an option's value without the folders and servers of this machine: what may be published.

    A name of the Hub stays whole. A model that a run left in final/ or best/ has the run's name.

    Example:
        >>> public_name("math=/home/me/math.jsonl:0.7"), public_name("/srv/runs/demo/final"), public_name("org/data:main")
        ('math=math.jsonl:0.7', 'demo', 'org/data:main')
        >>> public_name("~/rewards.py:exact"), public_name("openenv:http://10.0.0.2:8000")
        ('rewards.py:exact', 'openenv')
    """
    if value.startswith(FROM_PYTHON):
        return FROM_PYTHON + public_name(value.removeprefix(FROM_PYTHON))
    name, place = split_name(value)
    if "://" in place:
        place = place.partition("://")[0].rpartition(":")[0] or "URL"
    head = split_weight(place)[0]
    if not is_hub_model(head.rpartition(":")[0] or head):
        # Only the folders go: what stands behind the file's name stays.
        parts = [part for part in re.split(r"[/\\]", place) if part]
        left_by_a_run = len(parts) > 1 and re.fullmatch(r"final|best|checkpoint-[\w-]+", parts[-1])
        place = (parts[-2] if left_by_a_run else parts[-1]) if parts else place
    return f"{name}={place}" if name else place


def resolved(value: str) -> str:
    """Returns an option's value with its path absolute, without symbolic links and without a slash at its end.

    Example:
        >>> resolved("/models/m12/") == resolved("/models/x/../m12")
        True
    """
    path, rest = split_path(value)
    return os.path.realpath(os.path.expanduser(path)) + rest
