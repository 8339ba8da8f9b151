"""The learning rate as a pure function of the step: no scheduler has a state to resume.

Each schedule is a factor of the peak rate, by transformers' name and formula. `done` is the share of the steps after
warm-up that are over. A warm-up of w steps starts at 1/(w + 1) and rises by 1/(w + 1) a step. transformers starts at 0,
which would waste a step of rollouts.
"""

from __future__ import annotations

import math
from typing import Any

from ..config.options import TrainConfig
from ..config.schedule import floor_of, schedule_options, warmup_of


def learning_rate(config: TrainConfig, step: int, peak: float | None = None) -> float:
    """The learning rate of step `step`, counted from 0: warm-up, then the schedule of --lr_scheduler_type.

    `peak` is the rate after warm-up (None: --learning_rate).

    Example:
        >>> config = TrainConfig(learning_rate=1e-5, lr_scheduler_type="linear", max_steps=10)
        >>> [learning_rate(config, step) for step in (0, 5)]
        [1e-05, 5e-06]
    """
    peak = config.learning_rate if peak is None else peak
    name, options = config.lr_scheduler_type, schedule_options(config)
    warm, floor = warmup_of(config), floor_of(config, options)
    if name == "constant":
        return peak * 1.0
    if step < warm:
        rise = {"warmup_stable_decay": _stable_warmup, "cosine_warmup_with_min_lr": _cosine_warmup}.get(name)
        return peak * (step + 1) / (warm + 1) if rise is None else peak * rise(step, warm, floor, options)
    end = max(1, config.max_steps - warm)
    factor = FACTORS[name](step - warm, end, warm, options)
    return peak * max(0.0, factor * (1 - floor) + floor)


def _cosine(done: float, cycles: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * cycles * 2.0 * done))


def _cosine_with_restarts(step: int, end: int, warm: int, options: dict[str, Any]) -> float:
    """Falls as half a cosine, `num_cycles` times, from the peak each time."""
    done = step / end
    return 0.0 if done >= 1 else _cosine((options["num_cycles"] * done) % 1.0, 0.5)


def _inverse_sqrt(step: int, end: int, warm: int, options: dict[str, Any]) -> float:
    """1/√(1 + step/timescale), as transformers writes it: √timescale / √(step + timescale)."""
    timescale = options["timescale"] or warm or 10_000
    return 1 / math.sqrt((step + timescale) / timescale)


def _warmup_stable_decay(step: int, end: int, warm: int, options: dict[str, Any]) -> float:
    """Stays at the peak, then falls over the last `num_decay_steps` (MiniCPM, arXiv 2404.06395)."""
    decay = options["num_decay_steps"]
    stable = end - decay if options["num_stable_steps"] is None else options["num_stable_steps"]
    if step < stable:
        return 1.0
    if step >= stable + decay:
        return 0.0
    return _fall((step - stable) / max(1, decay), options["decay_type"], options["num_cycles"])


def _fall(done: float, shape: str, cycles: float = 0.5) -> float:
    """Falls from 1 to 0 in one of the shapes of `warmup_stable_decay`."""
    return {"linear": 1 - done, "cosine": _cosine(done, cycles), "1-sqrt": 1 - math.sqrt(done)}[shape]


def _stable_warmup(step: int, warm: int, floor: float, options: dict[str, Any]) -> float:
    """Rises from the floor in the shape of `warmup_type`.

    Args:
        step: counted from 0.
        warm: steps of warm-up.
        floor: the share of the peak from which it rises.
        options: the schedule's.

    Returns:
        The factor.
    """
    done = (step + 1) / (warm + 1)
    # 1-sqrt rises slowly at first, the others as `fall` the other way round.
    factor = (
        1 - math.sqrt(1 - done)
        if options["warmup_type"] == "1-sqrt"
        else 1 - _fall(done, options["warmup_type"])
    )
    return factor * (1 - floor) + floor


def _cosine_warmup(step: int, warm: int, floor: float, options: dict[str, Any]) -> float:
    """Rises to the peak in the last step of warm-up, as in transformers: from 1/w, or from `warmup_lr_rate` if it is given.

    Args:
        step: counted from 0.
        warm: steps of warm-up.
        floor: not used.
        options: the schedule's.

    Returns:
        The factor.
    """
    low = options["warmup_lr_rate"]
    if low is None:
        return (step + 1) / warm
    return low + (1 - low) * step / max(1, warm - 1)


# Arguments: the step counted from the end of warm-up, the steps after warm-up, the steps of warm-up, the options.
FACTORS: dict[str, Any] = {
    "constant_with_warmup": lambda step, end, warm, options: 1.0,
    "linear": lambda step, end, warm, options: 1 - step / end,
    "polynomial": lambda step, end, warm, options: (1 - step / end) ** options["power"],
    "cosine": lambda step, end, warm, options: _cosine(step / end, options["num_cycles"]),
    "cosine_with_min_lr": lambda step, end, warm, options: _cosine(step / end, options["num_cycles"]),
    # One step ahead, so that the last one is at the floor.
    "cosine_warmup_with_min_lr": lambda step, end, warm, options: _cosine(
        (step + 1) / end, options["num_cycles"]
    ),
    "cosine_with_restarts": _cosine_with_restarts,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}
