"""The plan of a configuration: its models are built on the meta device from their config.json."""

from __future__ import annotations

import dataclasses

from ...config.options import PlanConfig, TrainConfig
from ...config.teacher_options import local_teachers
from ...policy.load import skeleton
from .estimate import Plan, make_plan


def plan_config(config: PlanConfig) -> Plan:
    """Makes the plan of a configuration that `check_plan_config` has checked. Raises ValueError naming what cannot be planned."""
    how = config.attn_implementation, config.trust_remote_code
    reference = skeleton(config.ref_model, "--ref_model", *how) if config.ref_model else None
    teachers = [skeleton(place, "--teacher", *how) for place in local_teachers(config.teacher)]
    return make_plan(config, skeleton(config.model, "--model", *how), reference, teachers)


def plan_run(
    config: TrainConfig, ranks: int, device: str, prompt_tokens: int, completion_tokens: int
) -> Plan:
    """Makes the plan of a run, with the lengths that it has had.

    Args:
        config: the run's configuration.
        ranks: its ranks.
        device: `cuda` or `cpu`.
        prompt_tokens: the mean length of its prompts.
        completion_tokens: the mean length of its completions.

    Returns:
        The plan.

    Raises:
        ValueError: it cannot be made, such as for a model that was given as an object.
    """
    lengths = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return plan_config(PlanConfig(**own, ranks=ranks, device=device, **lengths))  # pyright: ignore[reportArgumentType]
