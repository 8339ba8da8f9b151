"""Scores groups of rollouts: groups → the same groups with rewards, and metrics of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.copies import own_copy
from ..common.imports import raised_at
from ..common.text import one_line
from ..types import SAMPLED, Messages, Metric, Metrics, Prompt, Rollout, RolloutGroup
from .calling import TimeOut, awaited_together, time_limit
from .registry import Reward, arguments, check_parameters, code_of, defined_at
from .signatures import is_async

# What rewards get of episodes where they name it, beside SAMPLED.
OF_EPISODES = ("environments", "environment_rewards")


class RewardError(ValueError):
    """A reward function raised, took too long, or returned something other than rewards. The message says where."""


Stuck = Callable[[RewardError], None]
"""Ends the process where a function catches its time limit again and again. It gets the error that says which one."""


def score(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Reward],
    timeout: float = 0.0,
    stuck: Stuck | None = None,
) -> list[RolloutGroup]:
    """Adds `rewards` [G, F] and their weighted sum `reward` [G] to the groups, both float64.

    Each function is called once, for all B completions of all groups. Async functions run together, after the others. NaN in
    `rewards` means that the function does not apply (it returned None). NaN in `reward` means that no function applies.
    No function sees a dropped episode, and its rewards are NaN.

    Args:
        groups: groups without rewards.
        rewards: F reward functions.
        timeout: seconds that a function may take; 0: no limit.
        stuck: called where a function catches its time limit again and again.

    Returns:
        The groups with rewards.

    Raises:
        RewardError: a function failed. The message names it and, where known, file:line and the dataset's row.
    """
    if not groups:
        return []
    kept = [replace(g, rollouts=tuple(r for r in g.rollouts if not r.is_dropped)) for g in groups]
    scores = (
        _call_all(rewards, _available(kept), kept, timeout, stuck) if any(g.rollouts for g in kept) else []
    )
    is_kept = torch.tensor([not r.is_dropped for g in groups for r in g.rollouts])  # [B]
    table = torch.full((len(is_kept), len(rewards)), math.nan, dtype=torch.float64)  # [B, F]
    if scores:
        table[is_kept] = torch.tensor(scores, dtype=torch.float64).T
    sizes = [len(group.rollouts) for group in groups]
    total = _weighted_sum(table, rewards)  # [B]
    return [
        replace(group, rewards=each, reward=summed)
        for group, each, summed in zip(groups, table.split(sizes), total.split(sizes), strict=True)
    ]


def reward_metrics(groups: Sequence[RolloutGroup], rewards: Sequence[Reward]) -> Metrics:
    """Computes metrics of scored groups, over the completions that have a reward.

    * `reward`: their mean; `reward_std`: the mean over groups of the group's unbiased standard deviation
      (groups with at least two rewards);
    * `frac_reward_zero_std`: the share of groups (with a reward) whose rewards are all equal;
    * `rewards/<name>/mean`, `rewards/<name>/std`: over the completions to which that function applies;
    * `reward/<dataset>/mean`: where there are several datasets, the mean over the completions of each.
    """
    totals = [_present(group.reward) for group in groups]
    spread = [_std(values) for values in totals if len(values) > 1]
    equal = [float(values.min() == values.max()) for values in totals if len(values) > 0]
    metrics = {
        "reward": Metric.mean(_joined(totals)),
        "reward_std": Metric.mean(torch.tensor(spread, dtype=torch.float64)),
        "frac_reward_zero_std": Metric.mean(torch.tensor(equal, dtype=torch.float64)),
    }
    for column, reward in enumerate(rewards):
        values = _joined([_present(g.rewards[:, column]) for g in groups if g.rewards is not None])
        metrics[f"rewards/{reward.name}/mean"] = Metric.mean(values)
        metrics[f"rewards/{reward.name}/std"] = Metric.derived("std", values)
    for name in sorted({group.prompt.dataset for group in groups} - {""}):
        own = [values for group, values in zip(groups, totals, strict=True) if group.prompt.dataset == name]
        metrics[f"reward/{name}/mean"] = Metric.mean(_joined(own))
    return metrics


# --------------------------------------------------------------------------- calling


def _available(groups: Sequence[RolloutGroup]) -> dict[str, list[Any]]:
    """Collects everything that a reward function may ask for, by name: lists of B entries, one per completion."""
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    names = dict.fromkeys(name for group in groups for name in group.prompt.columns)
    episodes = [rollout.episode for _, rollout in pairs if rollout.episode is not None]
    of_episodes = {
        "environments": [episode.environment for episode in episodes],
        "environment_rewards": [(episode.kind, episode.reward) for episode in episodes],
    }
    return {
        **{name: [prompt.columns.get(name) for prompt, _ in pairs] for name in names},
        "prompts": [rollout.prompt_content(prompt) for prompt, rollout in pairs],
        "completions": [_completion(prompt, rollout) for prompt, rollout in pairs],
        "completion_ids": [rollout.completion_ids.tolist() for _, rollout in pairs],
        **(of_episodes if episodes else {}),
    }


def _completion(prompt: Prompt, rollout: Rollout) -> str | Messages:
    """Returns the completion as reward functions get it: text, or in a chat the messages that follow, as in TRL."""
    if rollout.episode is not None:
        return rollout.episode.messages  # each function gets a copy of its own
    text = prompt.prefix + rollout.text
    return text if isinstance(prompt.content, str) else [{"role": "assistant", "content": text}]


def _call_all(
    rewards: Sequence[Reward],
    available: Mapping[str, list[Any]],
    groups: Sequence[RolloutGroup],
    timeout: float,
    stuck: Stuck | None,
) -> list[list[float]]:
    """Returns the rewards of all functions, [F][B], NaN for None. Raises RewardError."""
    for reward in rewards:
        check_parameters(reward, available.keys() - set(SAMPLED))  # an evaluation set may lack a column
    returned: dict[int, Any] = {}
    for place, reward in enumerate(rewards):
        if not is_async(reward.fn):
            returned[place] = _call(reward, available, groups, timeout, stuck)
    later = [place for place in range(len(rewards)) if place not in returned]
    if later:
        returned |= dict(
            zip(later, _await_all([rewards[p] for p in later], available, groups, timeout), strict=True)
        )
    return [_checked(returned[place], reward, groups) for place, reward in enumerate(rewards)]


def _call(
    reward: Reward,
    available: Mapping[str, list[Any]],
    groups: Sequence[RolloutGroup],
    timeout: float,
    stuck: Stuck | None,
) -> Any:
    """Returns what the function returned. Raises RewardError."""
    positional, by_name = _arguments(reward, available)

    def give_up() -> None:
        if stuck is not None:
            stuck(_failure(reward, TimeOut(), groups, timeout))

    try:
        with time_limit(timeout if reward.limited else 0.0, give_up):
            return reward.fn(*positional, **by_name)
    # A reward may call exit(), which must not end the run without an explanation.
    except (Exception, SystemExit, TimeOut) as error:
        raise _failure(reward, error, groups, timeout) from error


def _await_all(
    rewards: Sequence[Reward],
    available: Mapping[str, list[Any]],
    groups: Sequence[RolloutGroup],
    timeout: float,
) -> list[Any]:
    """Awaits async functions together and returns what they returned. Raises RewardError for the first that failed."""

    async def called(reward: Reward) -> Any:
        positional, by_name = _arguments(reward, available)
        return await reward.fn(*positional, **by_name)

    try:
        outcomes = awaited_together([called(reward) for reward in rewards], timeout)
    except TimeOut as error:  # one of them blocked the event loop
        raise _failure(rewards[0], error, groups, timeout, among=rewards) from error
    for reward, outcome in zip(rewards, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            raise _failure(reward, outcome, groups, timeout) from outcome
    return outcomes


def _arguments(reward: Reward, available: Mapping[str, list[Any]]) -> tuple[list[Any], dict[str, Any]]:
    """Returns what `reward` asks for, as copies of its own.

    So it may edit what it is given: the next function, the group's next completion, the logs and later steps see the
    dataset's values.
    """
    positional, by_name = arguments(reward, available, only_named=OF_EPISODES)
    # An environment is the episode's own, and may not be one that can be copied.
    return own_copy(positional), {
        name: values if name in OF_EPISODES else own_copy(values) for name, values in by_name.items()
    }


def _failure(
    reward: Reward,
    error: BaseException,
    groups: Sequence[RolloutGroup],
    timeout: float,
    among: Sequence[Reward] = (),
) -> RewardError:
    """Makes the error that says which function failed, where, and for which completions."""
    code = code_of(reward.fn)
    deep = error.__traceback__ is not None and error.__traceback__.tb_next is not None
    where = raised_at(error, code.co_filename) if code and deep else defined_at(reward.fn)
    who = (
        f"reward function `{reward.name}`"
        if len(among) < 2
        else (f"one of the async reward functions {', '.join(f'`{other.name}`' for other in among)}")
    )
    what = f"raised {type(error).__name__}: {one_line(error)}"
    if isinstance(error, TimeOut):
        what = f"took longer than --reward_timeout {timeout:g} seconds; raise that (0: no limit)"
    prompts = [group.prompt for group in groups for _ in group.rollouts]
    at = getattr(reward.fn, "at", None)  # set by a function that is called per completion
    which = (
        f"a completion of {prompts[at].source}"
        if at is not None
        else f"{len(prompts)} completions of {_sources(groups)}"
    )
    return RewardError(f"{where}: {who} {what} (while scoring {which})")


def _checked(returned: Any, reward: Reward, groups: Sequence[RolloutGroup]) -> list[float]:
    """Converts a function's result to [B] floats. Raises RewardError unless it is one number each."""
    who = f"{defined_at(reward.fn)}: reward function `{reward.name}`"
    rollouts = [(group.prompt.source, rollout) for group in groups for rollout in group.rollouts]
    expected = f"expected a list of {len(rollouts)}, one number or None for each completion"
    if isinstance(returned, np.ndarray | Tensor):
        if returned.ndim != 1:
            raise RewardError(f"{who} returned an array of shape {tuple(returned.shape)}; {expected}")
        returned = returned.tolist()
    if not isinstance(returned, list | tuple):
        raise RewardError(
            f"{who} returned {one_line(repr(returned), 80)}, a {type(returned).__name__}; {expected}"
        )
    if len(returned) != len(rollouts):
        raise RewardError(f"{who} returned {len(returned)} rewards; {expected}")
    numbers = []
    for value, (source, rollout) in zip(returned, rollouts, strict=True):
        number = _number(value)
        if number is None:
            raise RewardError(
                f"{who} returned {one_line(repr(value), 80)} for a completion of {source}, "
                f"{one_line(repr(rollout.text), 80)}; expected a finite number, or None where it doesn't apply"
            )
        numbers.append(number)
    return numbers


def _number(value: Any) -> float | None:
    """Returns a finite number as a float, NaN for None, and None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64's range
        return None
    return number if math.isfinite(number) else None


def _sources(groups: Sequence[RolloutGroup]) -> str:
    sources = list(dict.fromkeys(group.prompt.source for group in groups))
    return ", ".join(sources[:3]) + (f" and {len(sources) - 3} more rows" if len(sources) > 3 else "")


# --------------------------------------------------------------------------- arithmetic


def _weighted_sum(table: Tensor, rewards: Sequence[Reward]) -> Tensor:
    """[B, F] → [B], NaN where no function applies.

    Adds column by column. A matrix product might round two equal rows of it differently, and a group of equal rewards must
    stay exactly equal, because then it has no signal.
    """
    total = torch.zeros(len(table), dtype=torch.float64)
    for column, reward in zip(table.T, rewards, strict=True):
        total = total + reward.weight * column.nan_to_num(0.0)
    return total.masked_fill(table.isnan().all(dim=1), math.nan)


def _present(values: Tensor | None) -> Tensor:
    """Returns the entries that are not NaN; none if there are no rewards yet."""
    return torch.zeros(0, dtype=torch.float64) if values is None else values[~values.isnan()]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def _std(values: Tensor) -> float:
    """Returns the unbiased standard deviation. It is exactly 0 for equal values, whose computed mean may be rounded."""
    return 0.0 if values.min() == values.max() else float(values.std())
