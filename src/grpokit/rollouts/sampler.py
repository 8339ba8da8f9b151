"""Prompts → groups of completions with their log-probs. A Sampler is an engine that can do that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..types import Prompt, RolloutGroup


class SamplingStopped(Exception):
    """Sampling was given up halfway because its caller asked for that; the rollouts begun are lost."""


class Sampler(Protocol):
    """An engine that samples from the policy."""

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """A group of `num_generations` completions for each prompt, in order.

        The tokens are a function of (seed, prompt.position, generation, place in the completion) and the weights
        alone: not of the batch, the process or what was sampled before.
        """
        ...

    def sync(self) -> None:
        """Make the engine sample from the policy's present weights."""
        ...


class Pending(Protocol):
    """Rollouts that an engine is asked for, in two parts: `work` on any thread, then `groups` on the main one."""

    def work(self) -> None:
        """Have the engine sample. It talks to no other rank; an error is kept for `groups`."""
        ...

    def give_up(self) -> None:
        """Ask `work`, on its thread, to end soon."""
        ...

    def groups(self) -> list[RolloutGroup]:
        """What `work` has brought. All ranks call it.

        Raises on all of them what `work` met on any, and SamplingStopped where it was stopped here.
        """
        ...


class StartingSampler(Sampler, Protocol):
    """A sampler whose engine does its work elsewhere, so that this process can do something else meanwhile."""

    def start(self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False) -> Pending:
        """Make ready what `sample` would do, with the policy's present weights. All ranks call it."""
        ...
