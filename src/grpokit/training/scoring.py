"""Scores a run's groups on all ranks, for training and for evaluations."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any

from ..rewards import Report, Reward, TrainerState, score
from ..rollouts.gather import gather_groups
from ..runs.metrics import is_taken
from ..types import Metrics, Prompt, RolloutGroup
from .kl_reward import subtract_kl
from .rescue import end_stuck

if TYPE_CHECKING:
    from .run import Run


def score_groups(
    run: Run,
    step: int,
    groups: Sequence[RolloutGroup],
    prompts: Sequence[Prompt],
    rewards: tuple[Reward, ...] | None = None,
) -> tuple[list[RolloutGroup], Metrics]:
    """Rewards this rank's groups, after `step` steps. A collective.

    An error in a reward function is raised on every rank, so that all ranks can still save the trained weights together.

    Args:
        run: the run.
        step: steps done.
        groups: this rank's groups.
        prompts: the prompts of all ranks.
        rewards: an evaluation's own rewards (None: those of training).

    Returns:
        The groups of all ranks, in the order of `prompts`, and what the functions have logged on all ranks.
    """
    report = Report(trainer_state(run, step), is_taken)
    functions, limit = run.rewards if rewards is None else rewards, run.config.reward_timeout
    with run.world.together():
        scored = score(groups, functions, limit, partial(end_stuck, run), report)
    at = {prompt.position: prompt for prompt in prompts}
    logged = run.world.join_metrics(report.metrics)
    return gather_groups(scored, at.__getitem__, run.world), logged


def score_step(
    run: Run, step: int, groups: Sequence[RolloutGroup], prompts: Sequence[Prompt]
) -> tuple[list[RolloutGroup], Metrics]:
    """Rewards groups for training as `score_groups` does. With --kl_in_reward, subtracts the KL to the reference.

    Args:
        run: the run.
        step: steps done.
        groups: this rank's groups.
        prompts: the prompts of all ranks.

    Returns:
        See `score_groups`.
    """
    scored, logged = score_groups(run, step, groups, prompts)
    if run.config.kl_in_reward and run.reference is not None:
        scored = subtract_kl(scored, run.policy, run.reference, run.learning, run.config.beta)
    return scored, logged


def trainer_state(run: Run, step: int) -> TrainerState:
    """Returns what reward functions read of the run after `step` steps."""
    prompts: Any = run.prompts
    rows = len(prompts) if isinstance(prompts, Sized) else 0
    epoch = step * run.config.prompts_per_step / rows if rows else None
    return TrainerState(step, run.config.max_steps, epoch)
