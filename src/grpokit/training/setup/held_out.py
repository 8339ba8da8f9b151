"""Loads the held-out prompts of a run: one set, or several by name, each with its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...common.console import say
from ...common.text import did_you_mean
from ...config.options import TrainConfig
from ...config.sampled import for_evaluation
from ...data.form import ToolsOf
from ...data.mixture import MixedPrompts
from ...data.names import has_source_column, read_names, split_name
from ...rewards import Reward, describe_rewards, load_rewards
from ...rollouts import Sampler
from ...types import Prompt
from ..evaluation import HeldOut
from .columns import columns_of
from .environments import Environments
from .parts import Parts
from .prompts import RowSource, load_prompts

FLAG = "--eval_dataset"


@dataclass(frozen=True)
class HeldOutSet:
    """One set of held-out prompts. Example: `HeldOutSet("math", prompts, rewards, longest=120)`"""

    name: str  # "" for a single set without a name, whose figures have no name either
    prompts: list[Prompt]  # in the order of the data
    rewards: tuple[Reward, ...]
    longest: int  # tokens of the longest prompt


def load_held_out(
    config: TrainConfig,
    tokenizer: Any,
    context: int | None,
    parts: Parts,
    environments: Environments | None,
    rewards: tuple[Reward, ...],
) -> list[HeldOutSet]:
    """Loads the sets of --eval_dataset.

    Args:
        config: the run's configuration.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        parts: rows and functions from Python.
        environments: the tools and environments, where there are any.
        rewards: the rewards of training, for the sets that have none of their own.

    Returns:
        The sets, in the order of the option.

    Raises:
        ValueError: naming the option that cannot work.
    """
    tools_of = None if environments is None else environments.tools_of
    given = parts.eval_dataset if isinstance(parts.eval_dataset, Mapping) else None
    named = read_names(config.eval_dataset, FLAG)
    shows_names = has_source_column(config.eval_dataset)
    own = own_rewards(config, [part.name for part in named] if shows_names else [])
    found: list[HeldOutSet] = []
    for part in named:
        rows = parts.eval_dataset if given is None else given.get(part.name)
        if isinstance(rows, str | Path):
            rows = None
        prompts = _load(config, part.place, tokenizer, context, rows, tools_of)
        if shows_names or has_source_column(config.dataset):  # rewards may ask for the column
            prompts = MixedPrompts({part.name: prompts})
        functions = _rewards_of(config, own.get(part.name, own.get("", ())), prompts, environments, parts)
        if functions:
            say(f"{FLAG} {part.value}: {describe_rewards(functions)}")
        found.append(
            HeldOutSet(
                part.name if shows_names else "",
                prompts.in_order(config.eval_samples),
                functions or rewards,
                prompts.longest,
            )
        )
    return found


def with_sampler(sets: Sequence[HeldOutSet], sampler: Sampler, num_generations: int) -> tuple[HeldOut, ...]:
    """Returns the sets, each with its sampler and the number of completions of a prompt."""
    return tuple(HeldOut(one.name, one.prompts, one.rewards, sampler, num_generations) for one in sets)


def own_rewards(config: TrainConfig, names: list[str]) -> dict[str, tuple[str, ...]]:
    """Returns set → the rewards that --eval_reward_funcs names for it; "" stands for every set that isn't named.

    Raises:
        ValueError: a name that is no set.
    """
    found: dict[str, tuple[str, ...]] = {}
    for value in config.eval_reward_funcs:
        name, reward = split_name(value)
        if name and name not in names:
            raise ValueError(
                f"--eval_reward_funcs {value}: there is no set {name!r}{did_you_mean(name, names)}; "
                + (f"there are {', '.join(names)}" if names else f"name it: {FLAG} {name}=FILE")
            )
        found[name] = (*found.get(name, ()), reward)
    return found


def _load(
    config: TrainConfig,
    place: str,
    tokenizer: Any,
    context: int | None,
    rows: Any,
    tools_of: ToolsOf | None,
) -> RowSource:
    return load_prompts(for_evaluation(config), place, FLAG, tokenizer, context, rows, tools_of)


def _rewards_of(
    config: TrainConfig,
    specs: tuple[str, ...],
    prompts: RowSource,
    environments: Environments | None,
    parts: Parts,
) -> tuple[Reward, ...]:
    """Returns the set's own rewards, or training's made for evaluation's own length; () if training's can be used unchanged.

    Args:
        config: the run's configuration.
        specs: the rewards that --eval_reward_funcs names for the set.
        prompts: the set's prompts.
        environments: the tools and environments.
        parts: functions from Python.

    Raises:
        ValueError: the set lacks a column that a reward needs.
    """
    of_set = for_evaluation(config)
    if specs:
        of_set = replace(of_set, reward_funcs=specs, reward_weights=(), reward_routes=())
    try:
        made = load_rewards(of_set, columns_of(prompts, environments), parts.reward_funcs)
    except ValueError as error:
        raise ValueError(f"{FLAG} {' '.join(config.eval_dataset)}: {error}") from error
    if not specs and of_set.max_completion_length == config.max_completion_length:
        return ()
    return made + (() if environments is None else environments.rewards)
