"""Episodes that are dropped because their environment failed: how many a run may lose, and how many it has lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..parallel import World
from ..types import EpisodeFailed, RolloutGroup

log = logging.getLogger(__name__)


@dataclass
class ErrorBudget:
    """Counts the episodes dropped from a run's training, over all ranks and resumes. Evaluation has a budget of its own.

    Args:
        most: --max_environment_errors.
        dropped: episodes dropped so far, on all ranks.
    """

    most: int = 0
    dropped: int = 0
    waiting: int = 0  # dropped on this rank, in rollouts that `count` has not seen yet

    def drop(self, error: EpisodeFailed) -> None:
        """Drops an episode. Raises `error` where no more may be dropped."""
        if self.dropped + self.waiting >= self.most:
            error.add_note(
                f"--max_environment_errors {self.most} are used up"
                if self.most
                else "--max_environment_errors N drops up to N such episodes instead"
            )
            raise error
        self.waiting += 1
        log.warning(
            "an episode is dropped: %s (--max_environment_errors %d, %d before it)",
            error,
            self.most,
            self.dropped + self.waiting - 1,
        )

    def forget_waiting(self) -> None:
        """Begins a new batch. Forgets the drops in rollouts that were not counted: those rollouts are lost."""
        self.waiting = 0

    def count(self, groups: Sequence[RolloutGroup], world: World) -> None:
        """Adds the dropped episodes of all ranks. A collective.

        Args:
            groups: rollouts of this rank that the run goes on with.
            world: the ranks.

        Raises:
            ValueError: more than `most` episodes have been dropped. The message quotes the last error.
        """
        if not self.most:
            return
        errors = [str(r.episode.error) for g in groups for r in g.rollouts if r.episode and r.episode.error]
        self.waiting = max(0, self.waiting - len(errors))
        found = [error for part in world.gather_json(errors) for error in part]
        self.dropped += len(found)
        if found and self.dropped > self.most:
            raise ValueError(
                f"--max_environment_errors {self.most}: {self.dropped} episodes have failed on all ranks, the last one: "
                f"{found[-1]}"
            )
