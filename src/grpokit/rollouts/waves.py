"""Samples turns in waves, with an engine in this process: all unfinished episodes of a batch share a forward.

A wave begins once every unfinished episode has its answer. So its members depend on the episodes alone, never on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ..common.waiting import Waiting
from ..types import Rollout
from .sampler import Request


class Waves:
    """A session (`Turns`) that samples once every episode has asked for its next turn, or has ended.

    Args:
        complete: samples one continuation of each request, in order.
        version: the number of optimizer steps that the sampling weights have had.

    Example:
        >>> from grpokit.common.waiting import together
        >>> waves = Waves(lambda requests: [f"turn of {r.generation}" for r in requests], version=0)
        >>> requests = [Request((1, 7), position=0, generation=g, room=8) for g in range(2)]
        >>> together([waves.ask(request) for request in requests], work=waves.work)
        ['turn of 0', 'turn of 1']
    """

    def __init__(self, complete: Callable[[Sequence[Request]], list[Rollout]], version: int) -> None:
        self._complete, self.version = complete, version
        self._asked: list[tuple[Request, Future[Rollout]]] = []

    def ask(self, request: Request) -> Waiting[Rollout]:
        """See `Turns.ask`."""
        turn: Future[Rollout] = Future()
        self._asked.append((request, turn))
        yield [turn]
        return turn.result()

    def work(self, waiting: int) -> bool:
        """See `Turns.work`."""
        if len(self._asked) < waiting:
            return False
        # Tools answer in any order; the wave has the order of the data.
        asked = sorted(self._asked, key=lambda pair: (pair[0].position, pair[0].generation))
        self._asked = []
        rollouts = self._complete([request for request, _ in asked])
        for (_, turn), rollout in zip(asked, rollouts, strict=True):
            turn.set_result(rollout)
        return True
