"""Samples the completions of a step on all ranks, and the next step's ahead of time with --async_depth 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch

from ..parallel import World
from ..types import Metric, Metrics, Prompt, RolloutGroup
from .ahead import SampleAhead
from .dropped import ErrorBudget
from .gather import gather_groups
from .pending import RolloutsPending
from .resample import first_position
from .sampler import Sampler, SamplingStopped

Phase = Callable[[str], AbstractContextManager[None]]
"""Measures the wall time of a phase: `with phase("rollout"): ...`."""

Take = Callable[[list[RolloutGroup]], bool]
"""Takes groups while others are sampled (`RolloutsPending.streamed`). Returns whether those are still needed."""


class StreamingSampler(Sampler, Protocol):
    """A sampler that can hand over groups while it samples others."""

    def start(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> RolloutsPending:
        """See `StartingSampler.start`."""
        ...


class PromptOrder(Protocol):
    """The endless order in which prompts are drawn."""

    def take(self, position: int, count: int) -> list[Prompt]:
        """The `count` prompts from `position` on."""
        ...

    def at(self, position: int) -> Prompt:
        """The prompt at `position`."""
        ...

    def reaches(self, position: int) -> bool:
        """Tells whether there is a prompt at `position`."""
        ...

    def data_state(self, position: int) -> dict[str, Any] | None:
        """Returns the state that a checkpoint stores, so that reading continues at `position`."""
        ...


def sample_share(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    num_generations: int,
    world: World,
    pause: Callable[[], None],
    *,
    greedy: bool = False,
    budget: ErrorBudget | None = None,
    take: Take | None = None,
) -> list[RolloutGroup]:
    """Samples this rank's share of the prompts.

    Args:
        sampler: the engine.
        prompts: the prompts of all ranks.
        num_generations: completions of each prompt.
        world: the ranks.
        pause: called after sampling on all ranks; raises where a stop was asked for.
        greedy: takes the most probable token each time.
        budget: counts dropped episodes.
        take: gets groups while others are sampled; the engine is a `StreamingSampler`.

    Returns:
        A group for each prompt of this rank's share, in order.
    """
    with world.together():  # an environment may fail on one rank alone
        try:
            share = world.share(prompts)
            if take is None:
                groups = sampler.sample(share, num_generations, greedy=greedy)
            else:
                streaming = cast(StreamingSampler, sampler)
                groups = streaming.start(share, num_generations, greedy=greedy).streamed(take)
        except SamplingStopped:
            groups = []
    pause()
    if budget is not None:
        budget.count(groups, world)
    return groups


@dataclass
class StepRollouts:
    """The engine that samples a run's steps, on all ranks."""

    sampler: Sampler
    ahead: SampleAhead | None  # the same engine, where it samples one step ahead
    prompts: PromptOrder
    world: World
    pause: Callable[[], None]
    num_generations: int
    prompts_per_step: int
    max_resample_times: int
    max_steps: int
    budget: ErrorBudget = field(default_factory=ErrorBudget)  # counts the run's dropped episodes
    needs_greedy: bool = False  # whether each group gets its prompt's greedy completion
    # (the step under way, the state of the data where it began): a step that is sampled again begins there.
    began: tuple[int, dict[str, Any] | None] | None = None

    def begin_step(self, step: int) -> None:
        """Notes where the data stands before step `step`, counted from 0. All ranks call it."""
        self.began = step, self.prompts.data_state(self._first(step))

    def observe(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Tells an order of the user's own the mean rewards of a step's groups. All ranks call it."""
        tell = getattr(self.prompts, "observe", None)
        if tell is not None:
            tell(step, {group.prompt.position: _mean_reward(group) for group in groups})

    def sample(
        self, prompts: Sequence[Prompt], step: int, phase: Phase, take: Take | None = None
    ) -> list[RolloutGroup]:
        """Samples this rank's share of a step's prompts.

        Args:
            prompts: the prompts of all ranks.
            step: the step, counted from 0.
            phase: measures the time.
            take: see `sample_share`.

        Returns:
            A group for each prompt of this rank's share, in order.
        """
        with phase("rollout"):
            groups = self._sample(prompts, self.num_generations, take=take)
            if self.needs_greedy:
                found = self._sample(prompts, 1, greedy=True)
                greedy = {group.prompt.position: group.rollouts[0] for group in found}
                groups = [replace(group, greedy=greedy[group.prompt.position]) for group in groups]
        if self.max_resample_times == 0:  # else the step may need the engine once more
            self.begin_next(step)
        return groups

    def _sample(
        self, prompts: Sequence[Prompt], count: int, *, greedy: bool = False, take: Take | None = None
    ) -> list[RolloutGroup]:
        """Samples `count` completions of each prompt of this rank's share; see `sample_share`."""
        engine = self.ahead or self.sampler
        return sample_share(
            engine, prompts, count, self.world, self.pause, greedy=greedy, budget=self.budget, take=take
        )

    def begin_next(self, step: int) -> None:
        """With --async_depth 1: begins the rollouts of the step after `step`, unless they are begun. All ranks call it."""
        following = step + 1
        if self.ahead is not None and following < self.max_steps and self.has_prompts(following):
            prompts = self.prompts.take(self._first(following), self.prompts_per_step)
            self.ahead.begin(self.world.share(prompts), self.num_generations)

    def sync(self, phase: Phase) -> None:
        """Waits for rollouts that were begun with the old weights, then gives the engine the new ones."""
        if self.ahead is not None:
            with phase("rollout"):
                self.ahead.wait()
        with phase("sync"):
            (self.ahead or self.sampler).sync()

    def waiting(self) -> list[RolloutGroup]:
        """The next step's rollouts of all ranks that wait to be trained on. All ranks call it."""
        if self.ahead is None or self.ahead.ready is None:
            return []
        return gather_groups(self.ahead.ready, self.prompts.at, self.world)

    def staleness(self, groups: Sequence[RolloutGroup], version: int) -> Metrics:
        """`sampler/staleness` with --async_depth 1: the age of completions, in optimizer steps.

        `version`: optimizer steps taken before this step began.
        """
        if self.ahead is None:
            return {}
        ages = [version - rollout.policy_version for group in groups for rollout in group.rollouts]
        return {"sampler/staleness": Metric.mean(torch.tensor(ages, dtype=torch.float64))}

    def has_prompts(self, step: int) -> bool:
        """Tells whether the data reaches to the end of step `step`, counted from 0."""
        return self.prompts.reaches(self._first(step + 1) - 1)

    def data_state(self, step: int, within: bool = False) -> dict[str, Any] | None:
        """Returns the state of the data to checkpoint, so that step `step` gets the same prompts after a resume.

        `within`: the step is sampled and scored, and goes on; else it is sampled again, where it has begun.
        """
        if self.began is not None and self.began[0] == step and not within:
            return self.began[1]
        return self.prompts.data_state(self._first(step))

    def _first(self, step: int) -> int:
        return first_position(step, self.prompts_per_step, self.max_resample_times)

    def close(self) -> None:
        """Stops sampling that is in progress."""
        if self.ahead is not None:
            self.ahead.close()


def _mean_reward(group: RolloutGroup) -> float | None:
    """Returns the mean over the completions to which a reward applies, or None."""
    assert group.reward is not None  # the step is scored
    rewards = group.reward[~group.reward.isnan()]
    return float(rewards.mean()) if len(rewards) else None
