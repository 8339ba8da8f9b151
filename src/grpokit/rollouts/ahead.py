"""Sampling one step ahead: while a step trains, an engine elsewhere samples the completions of the next one.

    step n:    take its rollouts ─ begin n + 1 ─ score, learn ─ wait for n + 1 ─ new weights to the engine
    engine:                        └───── samples with the weights of n's start ─────┘

So the rollouts of a step come from weights that are one step old. The thread only talks to the engine. All collectives
stay on the ranks' main threads, in this order.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from ..parallel import ALONE, World
from ..types import Prompt, RolloutGroup
from .sampler import Pending, SamplingStopped, StartingSampler


class SampleAhead:
    """A `Sampler` around another one. It can start sampling the next step's completions before they are asked for.

    `ready` is this rank's share of the rollouts that were sampled ahead for the current step, or None on all ranks. It is
    kept until the step is over, because a checkpoint may need it.
    """

    def __init__(
        self, sampler: StartingSampler, world: World = ALONE, ready: list[RolloutGroup] | None = None
    ) -> None:
        self.sampler, self.world, self.ready = sampler, world, ready
        self.given = False  # whether `sample` has returned `ready`
        self.pending: Pending | None = None
        self.thread = threading.Thread()

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`. The first call of a step returns what was sampled ahead; others sample now."""
        if self.ready is not None and not self.given:
            assert [group.prompt.position for group in self.ready] == [prompt.position for prompt in prompts]
            self.given = True
            return self.ready
        self._join()  # the engine handles one batch at a time
        return self.sampler.sample(prompts, num_generations, greedy=greedy)

    def begin(self, prompts: Sequence[Prompt], num_generations: int) -> None:
        """Starts sampling the next step with the current weights, unless it is started already. A collective."""
        if self.pending is None:
            self.pending = self.sampler.start(prompts, num_generations)
            self.thread = threading.Thread(target=self.pending.work, name="sampling ahead", daemon=True)
            self.thread.start()

    def wait(self) -> None:
        """Ends a step: waits for what was begun, which becomes `ready`. A collective.

        Raises the error of the sampling. If sampling was stopped on any rank, its rollouts are lost on all ranks.
        """
        self._join()
        pending, self.pending, self.ready, self.given = self.pending, None, None, False
        if pending is None:
            return
        groups: list[RolloutGroup] | None = None
        with contextlib.suppress(SamplingStopped):  # whoever asked for the stop handles it at the next pause
            groups = pending.groups()
        if not self.world.any(groups is None):
            self.ready = groups

    def sync(self) -> None:
        """See `Sampler.sync`. Waits for rollouts in flight first: they must finish under the weights they were started with."""
        if self.pending is not None:
            self.wait()
        self.sampler.sync()

    def close(self) -> None:
        """Stops what is in flight, and waits for its end."""
        if self.pending is not None:
            self.pending.give_up()
        self._join()

    def _join(self) -> None:
        if self.thread.ident is not None:  # the thread was started
            self.thread.join()
