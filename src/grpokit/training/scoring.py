"""Scores a run's groups on all ranks, for training and for evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.console import say
from ..rewards import Report, Reward, TrainerState, score
from ..rollouts.gather import gather_groups
from ..runs.metrics import is_taken
from ..types import Metrics, Prompt, RolloutGroup
from .kl_reward import subtract_kl
from .rescue import end_stuck

if TYPE_CHECKING:
    from .clock import Clock
    from .run import Run


class EarlyScores:
    """Rewards groups while the others of their step are sampled (`--stream_rewards`). An error is kept until `finish`.

    Args:
        run: the run.
        step: steps done.
        clock: measures the time.
    """

    _error: Exception | None

    def __init__(self, run: Run, step: int, clock: Clock) -> None:
        self._score, self.report = scorer(run, step, run.rewards, by_group=True)
        self._clock, self._stopped, self._groups = clock, run.stop.is_set, list[RolloutGroup]()
        self._write_error, self._error = run.recorder.write_error, None

    def take(self, groups: list[RolloutGroup]) -> bool:
        """Scores groups. Returns whether the step's other groups are still needed: not after an error or a stop."""
        if self._stopped():
            return False
        with self._clock("reward_streamed"):
            try:
                self._groups += self._score(groups)
            except Exception as error:  # noqa: BLE001 - raised by `finish`, on all ranks
                self._error = error
                where = self._write_error(error)  # a stop at the same time is raised in its place
                if self._stopped():
                    say(f"note: {error}; {where}")
        return self._error is None

    def finish(self) -> list[RolloutGroup]:
        """Returns all scored groups of this rank, each with every logged column. Raises RewardError: a function failed."""
        if self._error is not None:
            raise self._error
        columns = {column: None for group in self._groups for column in group.extras}
        return [
            replace(g, extras={c: g.extras.get(c) or [None] * len(g.rollouts) for c in columns})
            for g in self._groups
        ]


def scorer(
    run: Run, step: int, rewards: tuple[Reward, ...], by_group: bool = False
) -> tuple[Callable[[Sequence[RolloutGroup]], list[RolloutGroup]], Report]:
    """Makes the function that rewards groups after `step` steps.

    Args:
        run: the run.
        step: steps done.
        rewards: the reward functions.
        by_group: calls them once for each group.

    Returns:
        The function, and the report of what the reward functions log.
    """
    report = Report(trainer_state(run, step), is_taken)
    settings = {"timeout": run.config.reward_timeout, "stuck": partial(end_stuck, run), "by_group": by_group}
    return partial(score, rewards=rewards, report=report, **settings), report


def score_groups(
    run: Run,
    step: int,
    groups: Sequence[RolloutGroup],
    prompts: Sequence[Prompt],
    rewards: tuple[Reward, ...] | None = None,
    early: EarlyScores | None = None,
) -> tuple[list[RolloutGroup], Metrics]:
    """Rewards this rank's groups, after `step` steps. A collective.

    An error in a reward function is raised on every rank, so that all ranks can still save the trained weights together.

    Args:
        run: the run.
        step: steps done.
        groups: this rank's groups.
        prompts: the prompts of all ranks.
        rewards: an evaluation's own rewards (None: those of training).
        early: has scored these groups already.

    Returns:
        The groups of all ranks, in the order of `prompts`, and what the functions have logged on all ranks.
    """
    rate, report = scorer(run, step, run.rewards if rewards is None else rewards)
    with run.world.together():
        scored = rate(groups) if early is None else early.finish()
        if any(group.greedy is not None for group in groups):
            # What the functions log of greedy completions isn't the step's.
            scored = _with_greedy_rewards(scored, groups, scorer(run, step, run.rewards)[0])
    report = report if early is None else early.report
    at = {prompt.position: prompt for prompt in prompts}
    logged = run.world.join_metrics(report.metrics)
    return gather_groups(scored, at.__getitem__, run.world), logged


def _with_greedy_rewards(
    scored: Sequence[RolloutGroup],
    groups: Sequence[RolloutGroup],
    rate: Callable[[Sequence[RolloutGroup]], list[RolloutGroup]],
) -> list[RolloutGroup]:
    """Scores the greedy completions of `groups`, and returns the scored groups with their rewards."""
    asked = [RolloutGroup(group.prompt, (group.greedy,)) for group in groups if group.greedy is not None]
    found = {group.prompt.position: group.reward for group in rate(asked)}
    rewards = [found[group.prompt.position] for group in scored]
    return [
        replace(group, greedy=None, greedy_reward=None if reward is None else reward[0])
        for group, reward in zip(scored, rewards, strict=True)
    ]


def score_step(
    run: Run,
    step: int,
    groups: Sequence[RolloutGroup],
    prompts: Sequence[Prompt],
    early: EarlyScores | None = None,
) -> tuple[list[RolloutGroup], Metrics]:
    """Rewards groups for training as `score_groups` does. With --kl_in_reward, subtracts the KL to the reference.

    Args:
        run: the run.
        step: steps done.
        groups: this rank's groups.
        prompts: the prompts of all ranks.
        early: has scored these groups already.

    Returns:
        See `score_groups`.
    """
    scored, logged = score_groups(run, step, groups, prompts, early=early)
    if run.config.kl_in_reward and run.reference is not None:
        scored = subtract_kl(scored, run.policy, run.reference, run.learning, run.config.beta)
    return scored, logged


def trainer_state(run: Run, step: int) -> TrainerState:
    """Returns what reward functions read of the run after `step` steps."""
    prompts: Any = run.prompts
    rows = len(prompts) if isinstance(prompts, Sized) else 0
    epoch = step * run.config.prompts_per_step / rows if rows else None
    return TrainerState(step, run.config.max_steps, epoch)
