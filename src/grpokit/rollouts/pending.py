"""Rollouts requested from an engine: sampled on any thread, then collected on the main thread."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import torch

from ..common.waiting import Waiting, together
from ..parallel import ALONE, World
from ..types import Prompt, Rollout, RolloutGroup
from .sampler import SamplingStopped, Turns

T = TypeVar("T")


@dataclass
class Progress:
    """What a sampling thread tells the main thread, and the reverse. Example: `Progress().ended(3, rollout)`"""

    given_up: bool = False  # set where the rollouts are not needed any more
    # None: the thread has ended.
    _ended: SimpleQueue[tuple[int, Rollout] | None] = field(default_factory=SimpleQueue)

    def ended(self, number: int, rollout: Rollout) -> None:
        """Hands over a rollout, by its number among all of them."""
        self._ended.put((number, rollout))

    def close(self) -> None:
        """Says that no rollout follows."""
        self._ended.put(None)

    def rollouts(self) -> Iterator[dict[int, Rollout]]:
        """Waits for rollouts, and yields those that have come by then; ends where no rollout follows."""
        last = False
        while not last:
            came = [self._ended.get()]
            while not self._ended.empty():
                came.append(self._ended.get())
            last = None in came
            yield dict(pair for pair in came if pair is not None)


class RolloutsPending:
    """A `Pending` around a function that samples.

    Args:
        prompts: P prompts.
        num_generations: G completions of each prompt.
        sample: samples the P·G rollouts, and returns them in order. It hands each over as soon as it has ended. Once they are
            given up, it raises SamplingStopped.
        world: the ranks.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sample: Callable[[Progress], list[Rollout]],
        world: World = ALONE,
    ) -> None:
        self.prompts, self.size, self.world = prompts, num_generations, world
        self._sample = sample
        self._progress = Progress()
        self._rollouts: list[Rollout] | None = None
        self._error: Exception | None = None
        self._is_refused = False

    def work(self) -> None:
        """See `Pending.work`."""
        try:
            with contextlib.suppress(SamplingStopped):
                self._rollouts = self._sample(self._progress)
        except BaseException as error:
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            self._error = _as_exception(error)  # raised by `groups`, on all ranks
        finally:
            self._progress.close()

    def give_up(self) -> None:
        """See `Pending.give_up`."""
        self._progress.given_up = True

    def now(self) -> list[RolloutGroup]:
        """Samples on this thread, and returns the rollouts. A collective."""
        self.work()
        return self.groups()

    def streamed(self, take: Callable[[list[RolloutGroup]], bool]) -> list[RolloutGroup]:
        """Samples on another thread, and hands over groups on this one while the others are sampled. A collective.

        Args:
            take: called with groups that are complete, in the order of the prompts. How many of them a call has depends on
                time. It returns whether the rollouts are still needed.

        Returns:
            See `groups`; none where `take` has refused them, whatever the sampling has then ended with.
        """
        thread = threading.Thread(target=self._work_on, args=(_device(),), name="sampling", daemon=True)
        thread.start()
        try:
            self._is_refused = not all(take(groups) for groups in self._complete())
        finally:
            self.give_up()  # changes nothing where all of them are sampled
            thread.join()
        return self.groups()

    def _work_on(self, device: int | None) -> None:
        if (
            device is not None
        ):  # the rank's, on which an engine of this process computes; each thread has its own
            torch.cuda.set_device(device)
        self.work()

    def _complete(self) -> Iterator[list[RolloutGroup]]:
        found: dict[int, Rollout] = {}
        first = 0
        for came in self._progress.rollouts():
            found |= came
            missing = next(n for n in itertools.count(first * self.size) if n not in found)
            last = missing // self.size
            if last > first:
                rollouts = [found[n] for n in range(first * self.size, last * self.size)]
                yield in_groups(self.prompts[first:last], self.size, rollouts)
                first = last

    def groups(self) -> list[RolloutGroup]:
        """See `Pending.groups`."""
        with self.world.together():
            if self._error is not None and not self._is_refused:
                raise self._error
        if self._is_refused:
            return []
        if self._rollouts is None:
            raise SamplingStopped("stopped while an engine was sampling")
        return in_groups(self.prompts, self.size, self._rollouts)


def _device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() else None


def _as_exception(error: BaseException) -> Exception:
    """Returns the error of a thread, which must not end in silence: a tool may call exit()."""
    if isinstance(error, Exception):
        return error
    raised = RuntimeError(f"sampling ended by {type(error).__name__}: {error}")
    raised.__cause__ = error
    return raised


def sample_together(
    pieces: Sequence[Waiting[T]],
    stop: Callable[[], bool],
    turns: Turns,
    ended: Callable[[int, T], None] = lambda number, value: None,
) -> list[T]:
    """Runs pieces that wait for an engine's turns. Raises SamplingStopped once `stop()` is True.

    Args:
        pieces: see `together`.
        stop: see `together`.
        turns: the engine's session.
        ended: see `together`.

    Returns:
        What each piece returned, in order.
    """
    try:
        return together(pieces, stop, turns.work, ended)
    except InterruptedError as stopped:
        raise SamplingStopped(str(stopped)) from stopped


def in_groups(prompts: Sequence[Prompt], size: int, rollouts: Sequence[Rollout]) -> list[RolloutGroup]:
    """Returns a group for each prompt, of `size` rollouts each, in order."""
    return [RolloutGroup(p, tuple(rollouts[i * size : (i + 1) * size])) for i, p in enumerate(prompts)]
