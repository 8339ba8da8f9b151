"""The interface of an engine that samples: prompts → groups of completions with their log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..types import Prompt, RolloutGroup


class SamplingStopped(Exception):
    """Sampling was stopped because its caller asked for that. Unfinished rollouts are lost."""


class Sampler(Protocol):
    """An engine that samples from the policy."""

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """Samples a group of `num_generations` completions for each prompt, in order.

        The tokens depend only on (seed, prompt.position, generation, place in the completion) and the weights. They do not depend
        on the batch, the process, or earlier samples.
        """
        ...

    def sync(self) -> None:
        """Makes the engine sample from the policy's current weights."""
        ...


class Pending(Protocol):
    """Rollouts requested from an engine, in two parts: `work` on any thread, then `groups` on the main one."""

    def work(self) -> None:
        """Lets the engine sample. Talks to no other rank, and keeps an error for `groups`."""
        ...

    def give_up(self) -> None:
        """Asks `work`, on its thread, to end soon."""
        ...

    def groups(self) -> list[RolloutGroup]:
        """Returns the rollouts. A collective.

        Raises an error of `work` on all ranks, and SamplingStopped where it was stopped here.
        """
        ...


class StartingSampler(Sampler, Protocol):
    """A sampler whose engine works elsewhere, so this process can do something else meanwhile."""

    def start(self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False) -> Pending:
        """Prepares what `sample` would do, with the policy's current weights. A collective."""
        ...
