"""The groups of a step: dynamic sampling replaces groups that teach nothing, and a filter may leave groups out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..types import Metric, Metrics, RolloutGroup, join_metrics

GroupFilter = Callable[[RolloutGroup], bool]
"""Tells whether a scored group is trained on.

Refused groups are resampled. Those still needed to fill the step are masked if the filter is the user's; otherwise they
stay, with advantage 0.
"""


class StepGroups:
    """Collects the `size` groups of one step (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2).

    Groups that `keeps` refuses make way for further prompts, up to `max_resample_times` rounds. Refused groups then fill
    what is still missing, so that every step has its size. Each step reserves `size · (1 + max_resample_times)` positions,
    even if it uses fewer: its start depends on the step's number alone.

    Args:
        step: the step's number, counted from 0.
        size: prompts of a step.
        max_resample_times: further rounds of sampling at most; 0 keeps every group of the first round.
        keeps: whether a scored group is wanted.
        masks: whether refused groups that stay in the step may not be trained on (for a filter of the user's).

    Example:
        >>> chosen = StepGroups(step=3, size=8, max_resample_times=0, keeps=lambda group: True)
        >>> chosen.position, chosen.missing
        (24, 8)
    """

    def __init__(
        self, step: int, size: int, max_resample_times: int, keeps: GroupFilter, masks: bool = False
    ) -> None:
        self.size, self.max_rounds = size, 1 + max_resample_times
        self.keeps, self.masks = keeps, masks
        self.asks = masks or max_resample_times > 0  # without either, a refused group would stay all the same
        self.first, self.rounds = first_position(step, size, max_resample_times), 0
        self.kept: list[RolloutGroup] = []
        self.refused: list[RolloutGroup] = []
        self.logged: Metrics = {}  # by the reward functions, of all rounds

    @property
    def missing(self) -> int:
        """The number of groups to sample next; 0 once the step has its groups."""
        return self.size - len(self.kept) if self.rounds < self.max_rounds else 0

    @property
    def position(self) -> int:
        """The place in the prompt order at which the next round begins."""
        return self.first + self.rounds * self.size

    def add(self, groups: Sequence[RolloutGroup], logged: Metrics) -> None:
        """Adds the scored groups of one round, and what their reward functions have logged."""
        self.logged = join_metrics(self.logged, logged)
        for group in groups:
            wanted = not self.asks or self.keeps(group)
            (self.kept if wanted else self.refused).append(group)
        self.rounds += 1

    @property
    def groups(self) -> list[RolloutGroup]:
        """The step's groups, in the order of their prompts."""
        filling = self.refused[: self.size - len(self.kept)]
        if self.masks:
            filling = [_untrainable(group) for group in filling]
        return sorted(self.kept + filling, key=lambda group: group.prompt.position)

    @property
    def metrics(self) -> Metrics:
        """What was logged, and `resampled_groups` where dynamic sampling is on: the groups that made way."""
        if self.max_rounds == 1:
            return self.logged
        in_vain = len(self.kept) + len(self.refused) - self.size
        return self.logged | {"resampled_groups": Metric.sum(torch.tensor(float(in_vain)))}


def first_position(step: int, size: int, max_resample_times: int) -> int:
    """The place in the prompt order at which step `step` (counted from 0) begins; its first round takes `size` prompts."""
    return step * size * (1 + max_resample_times)


def _untrainable(group: RolloutGroup) -> RolloutGroup:
    rollouts = (replace(r, trainable=torch.zeros_like(r.trainable)) for r in group.rollouts)
    return replace(group, rollouts=tuple(rollouts))
