"""Sampling one step ahead: while a step trains, an engine elsewhere samples the next one's completions.

    step n:    take its rollouts ─ begin n + 1 ─ score, learn ─ wait for n + 1 ─ new weights to the engine
    engine:                        └───── samples, by the weights of n's start ─────┘

The rollouts of a step are thus of weights one step old. The thread talks to the engine and to nobody else: what all
ranks must do together stays on their main threads, in this order.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from ..parallel import ALONE, World
from ..types import Prompt, RolloutGroup
from .sampler import Pending, SamplingStopped, StartingSampler


class SampleAhead:
    """A `Sampler` around another one that can be told to begin what will be asked for next.

    `ready` is this rank's share of the rollouts that were sampled ahead of the present step, or None where there are
    none, on all ranks alike. It stays after it was given out, until the step is over: a checkpoint may need it.
    """

    def __init__(
        self, sampler: StartingSampler, world: World = ALONE, ready: list[RolloutGroup] | None = None
    ) -> None:
        self.sampler, self.world, self.ready = sampler, world, ready
        self.given = False  # `ready` has been
        self.pending: Pending | None = None
        self.thread = threading.Thread()

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`. The first call of a step is given what was begun for it; others sample now."""
        if self.ready is not None and not self.given:
            assert [group.prompt.position for group in self.ready] == [prompt.position for prompt in prompts]
            self.given = True
            return self.ready
        self._join()  # the engine does one thing at a time
        return self.sampler.sample(prompts, num_generations, greedy=greedy)

    def begin(self, prompts: Sequence[Prompt], num_generations: int) -> None:
        """Have the next step's rollouts sampled by the policy's present weights, unless they are. All ranks call it."""
        if self.pending is None:
            self.pending = self.sampler.start(prompts, num_generations)
            self.thread = threading.Thread(target=self.pending.work, name="sampling ahead", daemon=True)
            self.thread.start()

    def wait(self) -> None:
        """End a step: what was begun is `ready` then, or nothing is. All ranks call it.

        Raises what the sampling met. Where it was stopped on any rank, its rollouts are lost on all of them.
        """
        self._join()
        pending, self.pending, self.ready, self.given = self.pending, None, None, False
        if pending is None:
            return
        groups: list[RolloutGroup] | None = None
        with contextlib.suppress(SamplingStopped):  # who asked for the stop says so at the next pause
            groups = pending.groups()
        if not self.world.any(groups is None):
            self.ready = groups

    def sync(self) -> None:
        """See `Sampler.sync`. Not before what is under way has come: it is of the weights that the engine has."""
        if self.pending is not None:
            self.wait()
        self.sampler.sync()

    def close(self) -> None:
        """Stop what is under way, and wait for its end."""
        if self.pending is not None:
            self.pending.give_up()
        self._join()

    def _join(self) -> None:
        if self.thread.ident is not None:  # it was started
            self.thread.join()
