"""Selects groups of a step and turns them into lines of completions.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..rewards import Reward
from ..types import RolloutGroup


def sample_of_groups(groups: Sequence[RolloutGroup], count: int) -> list[tuple[int, RolloutGroup]]:
    """Selects at most `count` groups, each with its number: the best and the worst by mean reward, then the first others."""

    def mean(i: int) -> float:
        reward = groups[i].reward
        return 0.0 if reward is None or reward.isnan().all() else float(reward.nanmean())

    order = sorted(range(len(groups)), key=mean)
    picked = list(dict.fromkeys([*order[-1:], *order[:1], *range(len(groups))]))[:count]
    return [(i, groups[i]) for i in sorted(picked)]


def _episodes(group: RolloutGroup) -> dict[str, Any]:
    """Returns the conversations of a group's episodes, where there are any."""
    episodes = [rollout.episode for rollout in group.rollouts if rollout.episode is not None]
    if not episodes:
        return {}
    is_shared = len({e.prompt_ids for e in episodes}) == 1
    return {
        "episodes": [
            {"messages": e.messages, "ending": e.ending, "turns": len(e.turns), "reward": e.reward}
            | ({"error": e.error} if e.error else {})
            | ({"prompt": e.prompt} if e.prompt is not None and not is_shared else {})
            for e in episodes
        ]
    }


def group_record(number: int, group: RolloutGroup, rewards: Sequence[Reward]) -> dict[str, Any]:
    """Returns a group as a line of completions.jsonl. `number` is its place in the step."""

    def numbers(column: Tensor | None) -> list[float | None]:
        return [] if column is None else [None if math.isnan(x) else x for x in column.tolist()]

    table = group.rewards
    return {
        "group": number,
        "prompt": next(iter(group.rollouts)).prompt_content(group.prompt),
        "source": group.prompt.source,
        "columns": {
            k: v if isinstance(v, str | int | float | bool | None) else str(v)
            for k, v in group.prompt.columns.items()
        },
        "completions": [group.prompt.prefix + rollout.text for rollout in group.rollouts],
        "lengths": [len(rollout.completion_ids) for rollout in group.rollouts],
        "finish_reasons": [rollout.finish_reason for rollout in group.rollouts],
        **_episodes(group),
        "rewards": {r.name: numbers(None if table is None else table[:, f]) for f, r in enumerate(rewards)},
        **({"extras": group.extras} if group.extras else {}),
        "reward": numbers(group.reward),
        "advantages": numbers(group.advantages),
    }
