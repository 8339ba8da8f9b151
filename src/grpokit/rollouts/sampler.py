"""The interface of an engine that samples: prompts → groups of completions with their log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ..common.waiting import Waiting
from ..types import Prompt, Rollout, RolloutGroup


@dataclass(frozen=True)
class Request:
    """What an engine continues: one turn of an episode. Example: `Request((1, 7), position=0, generation=3, room=64)`"""

    ids: tuple[int, ...]  # everything that the model reads: the prompt, and all turns so far
    position: int  # the prompt's, in the order of the data; a key of the noise
    generation: int  # the episode's number in its group; a key of the noise
    room: int  # the most tokens to sample
    start: int = 0  # place of the first sampled token in the episode; a key of the noise
    source: str = ""  # the prompt's row, for messages


def first_turns(prompts: Sequence[Prompt], num_generations: int, room: int) -> list[Request]:
    """Requests a completion of one turn for each member of each prompt's group, in order.

    Example:
        >>> [(r.position, r.generation) for r in first_turns([Prompt(5, (1, 7), "7 =", {}, "a.jsonl:6")], 2, room=8)]
        [(5, 0), (5, 1)]
    """
    return [
        Request(prompt.ids, prompt.position, g, room, source=prompt.source)
        for prompt in prompts
        for g in range(num_generations)
    ]


class Turns(Protocol):
    """The turns that an engine samples, while its session lasts."""

    version: int  # optimizer steps taken before the weights that sample

    def ask(self, request: Request) -> Waiting[Rollout]:
        """Samples one continuation.

        Its tokens depend only on (seed, position, generation, place in the episode), the request's ids and the weights.
        """
        ...

    def work(self, waiting: int) -> bool:
        """Samples on this thread, if the engine does not work elsewhere. `together` calls it while all episodes wait.

        Args:
            waiting: the episodes under way. All of them wait: for a turn that they asked for, or for something else.

        Returns:
            Whether anything was done.
        """
        ...


class TurnEngine(Protocol):
    """An engine that continues any tokens. It never sees what answers the model between two turns."""

    def turns(self, prompts: Sequence[Prompt], *, greedy: bool = False) -> AbstractContextManager[Turns]:
        """Prepares a session with the policy's current weights. A collective.

        Args:
            prompts: this rank's prompts.
            greedy: takes the most probable token each time.

        Returns:
            The session. One whose engine works elsewhere may be entered on any thread.
        """
        ...

    def sync(self) -> None:
        """Makes the engine sample from the policy's current weights."""
        ...


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
