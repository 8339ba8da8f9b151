"""Writes the batch and the optimizer of a configuration as TRL's options. TRL counts optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...config.options import TrainConfig
from ...config.schedule import SCHEDULES, schedule_options, warmup_of

Say = Callable[[str], None]


def write_batch(config: TrainConfig, processes: int, theirs: dict[str, Any], say: Say) -> None:
    """Writes the batch as per-device size × gradient accumulation, and every number of steps in optimizer steps.

    Args:
        config: the configuration.
        processes: the number of processes of TRL's run.
        theirs: TRL's options so far, extended in place.
        say: called with a note for the user.
    """
    batch = config.prompts_per_step * config.num_generations
    update = batch // config.updates_per_step
    if batch % config.updates_per_step or update % processes:
        raise ValueError(
            f"--num_processes {processes}: expected a divisor of the {update} completions of an optimizer step "
            f"({config.prompts_per_step} prompts × {config.num_generations} / {config.updates_per_step} updates)"
        )
    share = update // processes
    device = max(size for size in range(1, min(share, config.num_generations) + 1) if share % size == 0)
    accumulation = share // device
    theirs |= {
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * config.updates_per_step,
    }
    per_step = config.updates_per_step * config.num_iterations
    if config.num_train_epochs:
        theirs["num_train_epochs"] = config.num_train_epochs
    else:
        theirs["max_steps"] = config.max_steps * per_step
    counted = {"warmup_steps": warmup_of(config), "eval_steps": config.eval_steps}
    if config.sync_ref_model:
        counted["ref_model_sync_steps"] = config.ref_model_sync_steps
    theirs |= {name: steps * per_step for name, steps in counted.items() if steps}
    theirs["logging_steps"] = config.logging_steps * per_step
    theirs |= (
        {"save_strategy": "steps", "save_steps": config.save_steps * per_step}
        if config.save_steps
        else {"save_strategy": "no"}
    )
    if config.save_total_limit:
        theirs["save_total_limit"] = config.save_total_limit
    say(
        f"per_device_train_batch_size: {device} for {processes} process{'es' if processes > 1 else ''}; it sets the "
        "memory that TRL needs; if you change it, keep its product with gradient_accumulation_steps"
    )


def write_optimizer(config: TrainConfig, theirs: dict[str, Any], say: Say) -> None:
    """Writes the optimizer, and the options of its schedule, whose steps are optimizer steps there."""
    if config.optim == "adamw_8bit":
        theirs["optim"] = "adamw_bnb_8bit"
    elif config.optim != "adamw":
        say(f"optim: {config.optim} has no counterpart in `trl grpo`; AdamW trains")
    per_step = config.updates_per_step * config.num_iterations
    given = {item.partition("=")[0] for item in config.lr_scheduler_kwargs}
    options = {name: value for name, value in schedule_options(config).items() if name in given}
    options = {
        name: value * per_step if name.endswith("_steps") else value for name, value in options.items()
    }
    if config.min_lr:
        own = {"polynomial": "lr_end"}.get(config.lr_scheduler_type, "min_lr")
        if own in SCHEDULES[config.lr_scheduler_type]:
            options[own] = config.min_lr
        else:
            say(
                f"min_lr: {config.min_lr:g} has no counterpart with {config.lr_scheduler_type} in TRL; left out"
            )
    if options:
        theirs["lr_scheduler_kwargs"] = options
