"""Ends a run whose evaluations get no better: `--early_stop METRIC:PATIENCE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.console import say
from ..common.text import did_you_mean
from ..config.early_stop import parse_early_stop
from ..rewards import Reward
from ..rewards.registry import asks_to_log
from ..runs.metrics import METRICS, is_taken
from .evaluation import figure_names


def check_early_stop(setting: str, sets: Mapping[str, Sequence[Reward]], num_generations: int) -> None:
    """Checks that the run's evaluations can have the figure. Does nothing without a setting or a set.

    Args:
        setting: METRIC:PATIENCE, or "".
        sets: the rewards of each held-out set by its name; "" is the name of a single set without one.
        num_generations: sampled completions of each prompt.

    Raises:
        ValueError: no figure has that name, and no reward function can log one.
    """
    if not setting or not sets:
        return
    metric, _ = parse_early_stop(setting)
    known, may_be_logged = {"eval/reward"}, False
    for name, rewards in sets.items():
        prefix = f"eval/{name}/" if name else "eval/"
        known |= {prefix + figure.removeprefix("eval/") for figure in figure_names(num_generations)}
        own = metric.removeprefix(prefix)
        may_be_logged |= own != metric and any(_may_log(reward, own) for reward in rewards)
    if metric in known:
        return
    near = did_you_mean(metric, known)
    if not may_be_logged:
        raise ValueError(
            f"--early_stop {setting}: the evaluations have no figure {metric}{near}; they have {', '.join(sorted(known))}"
        )
    say(f"note: --early_stop {setting}: only a reward function that logs it gives {metric}{near}")


def _may_log(reward: Reward, name: str) -> bool:
    """Tells whether a reward function may log a metric of that name in an evaluation."""
    if reward.kind == "built in":
        return reward.name == "judge" and name.startswith("judge/") and name in METRICS
    return asks_to_log(reward) and not is_taken(name)


def has_stalled(setting: str, evaluations: Sequence[Mapping[str, Any]]) -> bool:
    """Tells whether the figure has not improved in the last PATIENCE evaluations. Depends on the run's history alone.

    Args:
        setting: METRIC:PATIENCE, or "": never.
        evaluations: the run's evaluations, in order.

    Raises:
        ValueError: the evaluations have no such figure.

    Example:
        >>> rows = [{"eval/reward": value} for value in (0.1, 0.4, 0.4, 0.3)]
        >>> has_stalled("eval/reward:2", rows), has_stalled("eval/reward:3", rows)
        (True, False)
    """
    if not setting:
        return False
    metric, patience = parse_early_stop(setting)
    values = [row[metric] for row in evaluations if metric in row]
    if evaluations and not values:
        known = sorted({name for row in evaluations for name in row if name.startswith("eval/")})
        raise ValueError(
            f"--early_stop {setting}: the evaluations have no figure {metric}; they have {', '.join(known)}"
        )
    return len(values) > patience and max(values[:-patience]) >= max(values[-patience:])
