"""The learning rate's schedules by name: transformers' names, and the options that each takes in --lr_scheduler_kwargs."""

from __future__ import annotations

import math
from typing import Any

from ..common.text import did_you_mean, name_and_value

# Name → the options of transformers' function, with its defaults. None: worked out from the run, or not used.
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {"num_cycles": 0.5},
    "cosine_with_restarts": {"num_cycles": 1},
    "polynomial": {"lr_end": None, "power": 1.0},
    "inverse_sqrt": {"timescale": None},
    "cosine_with_min_lr": {"num_cycles": 0.5, "min_lr": None, "min_lr_rate": None},
    "cosine_warmup_with_min_lr": {
        "num_cycles": 0.5,
        "min_lr": None,
        "min_lr_rate": None,
        "warmup_lr_rate": None,
    },
    "warmup_stable_decay": {
        "num_decay_steps": None,
        "num_stable_steps": None,
        "warmup_type": "linear",
        "decay_type": "cosine",
        "min_lr_ratio": None,
        "num_cycles": 0.5,
    },
}
# transformers' schedules that are refused, because the rate is not a function of the step alone: name → reason.
NO_FUNCTIONS = {
    "greedy": "follows the loss of each step",
    "reduce_lr_on_plateau": "follows the evaluations of the run",
}
UNBOUNDED = ("constant", "constant_with_warmup", "inverse_sqrt")  # never end at a floor
ABSOLUTE, RELATIVE = ("lr_end", "min_lr"), ("min_lr_rate", "min_lr_ratio")
SHAPES = ("linear", "cosine", "1-sqrt")
LR_END = 1e-7  # transformers' default for polynomial


def warmup_of(config: Any) -> int:
    """The steps of warm-up: --warmup_steps, or --warmup_ratio of --max_steps, rounded up as transformers does."""
    return math.ceil(config.warmup_ratio * config.max_steps) or config.warmup_steps


def schedule_options(config: Any) -> dict[str, Any]:
    """Returns the options of the configured schedule: its defaults, overridden by --lr_scheduler_kwargs.

    Raises ValueError naming an unknown schedule, an option that the schedule doesn't have, or a value that it can't take.
    """
    name = config.lr_scheduler_type
    _check_name(name)
    known = SCHEDULES[name]
    found = dict(known)
    for item in config.lr_scheduler_kwargs:
        key, text = name_and_value(item, "--lr_scheduler_kwargs", "num_cycles=2")
        if key not in known:
            has = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(
                f"--lr_scheduler_kwargs {item}: not used by --lr_scheduler_type {name}{did_you_mean(key, known)}; {has}"
            )
        found[key] = _value(item, key, text)
    return found


def floor_of(config: Any, options: dict[str, Any] | None = None) -> float:
    """The share of the peak at which the schedule ends: --min_lr, or the schedule's own option for it; else 0."""
    options = schedule_options(config) if options is None else options
    own = {name: options[name] for name in (*ABSOLUTE, *RELATIVE) if options.get(name) is not None}
    if config.min_lr:
        own["--min_lr"] = config.min_lr
    if len(own) > 1:
        first, second = list(own)[:2]
        raise ValueError(f"--lr_scheduler_kwargs {first}: says the same as {second}; give one of them")
    if not own:
        own = (
            {"lr_end": min(LR_END, config.learning_rate)}
            if config.lr_scheduler_type == "polynomial"
            else {"min_lr_ratio": 0.0}
        )
    [(name, value)] = own.items()
    if name in RELATIVE or not config.learning_rate:
        return value
    return value / config.learning_rate


def check_schedule(config: Any, knows_steps: bool | None = None) -> None:
    """Raises ValueError naming the first option of the schedule that cannot work.

    Args:
        config: the configuration.
        knows_steps: whether --max_steps is final (None: it is, unless --num_train_epochs is given and will set it).
    """
    name = config.lr_scheduler_type
    options = schedule_options(config)
    if not 0 <= config.warmup_ratio < 1:
        raise ValueError(f"--warmup_ratio {config.warmup_ratio:g}: must be at least 0 and below 1")
    if config.warmup_ratio and config.warmup_steps:
        raise ValueError(
            f"--warmup_ratio {config.warmup_ratio:g}: --warmup_steps {config.warmup_steps} says the same; give one of them"
        )
    if config.min_lr and name in UNBOUNDED:
        raise ValueError(
            f"--min_lr {config.min_lr:g}: --lr_scheduler_type {name} never ends; use linear or cosine"
        )
    floor = floor_of(config, options)
    if not 0 <= floor <= 1:
        raise ValueError(
            f"--min_lr {floor * config.learning_rate:g}: the rate at the end must be between 0 and --learning_rate "
            f"{config.learning_rate:g}"
        )
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and not floor:
        raise ValueError(f"--lr_scheduler_type {name}: at which rate does it end? Add --min_lr")
    if name == "warmup_stable_decay" and options["num_decay_steps"] is None:
        raise ValueError(
            f"--lr_scheduler_type {name}: over how many steps does it fall? Add --lr_scheduler_kwargs num_decay_steps="
            f"{max(1, config.max_steps // 10)}"
        )
    knows_steps = not config.num_train_epochs if knows_steps is None else knows_steps
    if name == "warmup_stable_decay" and knows_steps:
        left = config.max_steps - warmup_of(config)
        needed = options["num_decay_steps"] + (options["num_stable_steps"] or 0)
        if needed > left:
            raise ValueError(
                f"--lr_scheduler_kwargs num_decay_steps={options['num_decay_steps']}: the schedule needs {needed} steps after "
                f"warm-up, and the run has {left}; use fewer"
            )


def _check_name(name: str) -> None:
    """Raises ValueError unless there is a schedule of this name."""
    if name in NO_FUNCTIONS:
        raise ValueError(
            f"--lr_scheduler_type {name}: {NO_FUNCTIONS[name]}, and a rate here depends on the step alone, so that it can "
            "be resumed and is the same on every rank; use linear or cosine"
        )
    if name not in SCHEDULES:
        raise ValueError(
            f"--lr_scheduler_type {name}: there is no such schedule{did_you_mean(name, SCHEDULES)}; there are "
            f"{', '.join(SCHEDULES)}"
        )


def _value(item: str, key: str, text: str) -> Any:
    if key.endswith("_type"):
        if text not in SHAPES:
            raise ValueError(f"--lr_scheduler_kwargs {item}: expected one of {', '.join(SHAPES)}")
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    whole = key.startswith("num_") and key.endswith("_steps")
    positive = key in ("timescale", "power", "num_cycles")
    if not (0 <= number < math.inf) or (whole and number != int(number)) or (positive and not number):
        expected = "a whole number" if whole else "a number above 0" if positive else "a number, 0 or more"
        raise ValueError(f"--lr_scheduler_kwargs {item}: expected {expected}")
    return int(number) if whole else number
