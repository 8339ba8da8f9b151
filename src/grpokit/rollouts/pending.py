"""Rollouts requested from an engine: sampled on any thread, then collected on the main thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..common.waiting import Waiting, together
from ..parallel import ALONE, World
from ..types import Prompt, Rollout, RolloutGroup
from .sampler import SamplingStopped, Turns

T = TypeVar("T")


class RolloutsPending:
    """A `Pending` around a function that samples.

    Args:
        prompts: P prompts.
        num_generations: G completions of each prompt.
        sample: samples the P·G rollouts, in order. Its argument is a function that tells whether to stop. Once that returns
            True, `sample` raises SamplingStopped.
        world: the ranks.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sample: Callable[[Callable[[], bool]], list[Rollout]],
        world: World = ALONE,
    ) -> None:
        self.prompts, self.size, self.world = prompts, num_generations, world
        self._sample = sample
        self._given_up = False
        self._rollouts: list[Rollout] | None = None
        self._error: Exception | None = None

    def work(self) -> None:
        """See `Pending.work`."""
        try:
            with contextlib.suppress(SamplingStopped):
                self._rollouts = self._sample(lambda: self._given_up)
        except Exception as error:  # noqa: BLE001 - raised by `groups`, on all ranks
            self._error = error

    def give_up(self) -> None:
        """See `Pending.give_up`."""
        self._given_up = True

    def now(self) -> list[RolloutGroup]:
        """Samples on this thread, and returns the rollouts. A collective."""
        self.work()
        return self.groups()

    def groups(self) -> list[RolloutGroup]:
        """See `Pending.groups`."""
        with self.world.together():
            if self._error is not None:
                raise self._error
        if self._rollouts is None:
            raise SamplingStopped("stopped while an engine was sampling")
        return in_groups(self.prompts, self.size, self._rollouts)


def sample_together(pieces: Sequence[Waiting[T]], stop: Callable[[], bool], turns: Turns) -> list[T]:
    """Runs pieces that wait for an engine's turns; see `together`. Raises SamplingStopped once `stop()` is True."""
    try:
        return together(pieces, stop, turns.work)
    except InterruptedError as stopped:
        raise SamplingStopped(str(stopped)) from stopped


def in_groups(prompts: Sequence[Prompt], size: int, rollouts: Sequence[Rollout]) -> list[RolloutGroup]:
    """Returns a group for each prompt, of `size` rollouts each, in order."""
    return [RolloutGroup(p, tuple(rollouts[i * size : (i + 1) * size])) for i, p in enumerate(prompts)]
