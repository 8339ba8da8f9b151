"""The order of a run's prompts, where the user gives one, and the run's length in epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ...common.console import say
from ...config.options import TrainConfig
from ...config.schedule import check_schedule
from ...data.ordered import OrderedPrompts
from ...data.stream import PromptStream
from ...data.tasks import EnvironmentTasks
from ...parallel import World
from ...runs.checkpoint import TrainState
from .data import RunData
from .parts import Parts, find_order
from .prompts import PromptSource


def with_order(config: TrainConfig, data: RunData, parts: Parts, world: World) -> tuple[TrainConfig, RunData]:
    """Puts prompts into the order of --sampler_order, and counts the steps of --num_train_epochs.

    Args:
        config: the run's configuration.
        data: the run's data.
        parts: objects from Python.
        world: the ranks.

    Returns:
        The configuration with the number of steps, and the data in that order.
    """
    prompts = in_own_order(config, data.prompts, parts, world)
    return with_steps(config, prompts), replace(data, prompts=prompts)


def in_own_order(config: TrainConfig, prompts: PromptSource, parts: Parts, world: World) -> PromptSource:
    """Puts prompts into the order of --sampler_order, where there is one. Only the main rank calls its object.

    Args:
        config: the run's configuration.
        prompts: the prompts.
        parts: objects from Python.
        world: the ranks.

    Returns:
        The prompts in that order.
    """
    make_order = find_order(config, parts)
    if make_order is None or isinstance(prompts, PromptStream | EnvironmentTasks | OrderedPrompts):
        return prompts

    def ask(function: Callable[[], Any]) -> Any:
        with world.together():
            answer = function() if world.is_main else None
        return world.from_main(answer)

    positions = config.prompts_per_step * (1 + config.max_resample_times)
    return OrderedPrompts(
        prompts, make_order, positions, seed=config.seed, name=config.sampler_order, ask=ask
    )


def with_steps(config: TrainConfig, prompts: PromptSource) -> TrainConfig:
    """Computes --max_steps from --num_train_epochs, if that is given, and the number of rows, and prints it.

    Raises:
        ValueError: the order has no length, so that there is no epoch.
    """
    if not config.num_train_epochs or isinstance(prompts, PromptStream | EnvironmentTasks):
        return config
    rows = prompts.epoch() if isinstance(prompts, OrderedPrompts) else len(prompts)
    if not rows:
        raise ValueError(
            f"--num_train_epochs {config.num_train_epochs:g}: the object of --sampler_order has no length (__len__), so there "
            "is no epoch; use --max_steps"
        )
    steps = max(1, math.ceil(Fraction(str(config.num_train_epochs)) * rows / config.prompts_per_step))
    say(
        f"--num_train_epochs {config.num_train_epochs:g}: {rows:,} rows are {steps:,} steps of {config.prompts_per_step} "
        "prompts"
    )
    config = replace(config, max_steps=steps)
    check_schedule(config, knows_steps=True)
    return config


def check_length(config: TrainConfig, state: TrainState) -> None:
    """Raises ValueError if --num_train_epochs ends the run before the step in whose middle the checkpoint was saved."""
    if state.unfinished is not None and config.max_steps <= state.step:
        raise ValueError(
            f"--num_train_epochs {config.num_train_epochs:g}: is {config.max_steps} steps, and the checkpoint was saved within "
            f"step {state.step + 1}; use more"
        )
