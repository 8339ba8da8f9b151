"""Loads the data of a run: prompts, rewards and held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.console import say
from ...config.options import TrainConfig
from ...config.sampled import for_evaluation
from ...data.mixture import MixedPrompts
from ...data.names import has_source_column, read_name
from ...data.tasks import EnvironmentTasks
from ...parallel import ALONE, World
from ...policy.policy import Policy
from ...rewards import Reward, describe_rewards, load_rewards
from ...rewards.functions import OF_EPISODES
from ...types import Prompt
from .environments import Environments, find_environments, longest_sequence
from .parts import Parts
from .prompts import PromptSource, load_prompts, load_training_prompts
from .tasks import load_tasks


def columns_of(prompts: PromptSource, environments: Environments | None) -> set[str]:
    """Returns what a reward may ask for by name: the columns, and what episodes have beside them.

    Args:
        prompts: the prompts.
        environments: the tools and environments.

    Raises:
        ValueError: an environment needs a column that is missing, or a row names no environment.
    """
    columns = set(prompts.columns)
    if environments is None:
        return columns
    environments.check_columns(columns)
    environments.check_rows(prompts.checked())
    return columns | set(OF_EPISODES)


@dataclass(frozen=True)
class RunData:
    """The data of a run: its prompts, rewards and held-out prompts."""

    prompts: PromptSource
    rewards: tuple[Reward, ...]
    held_out: list[Prompt]  # in the order of --eval_dataset
    longest: int  # tokens of the longest prompt to train on
    longest_held_out: int  # tokens of the longest held-out prompt; 0: there is none
    environments: Environments | None  # the tools and environments, where there are any


def load_data(
    config: TrainConfig,
    tokenizer: Any,
    context: int | None,
    parts: Parts,
) -> RunData:
    """Loads the prompts, the rewards and the held-out prompts of a run.

    Args:
        config: the run's configuration.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        parts: rows and functions from Python.

    Returns:
        The data.

    Raises:
        ValueError: naming the option that cannot work.
    """
    environments = find_environments(config, parts, tokenizer)
    tools_of = None if environments is None else environments.tools_of
    if environments is not None and not config.dataset:
        prompts: PromptSource = load_tasks(environments, config, tokenizer, context)
    else:
        prompts = load_training_prompts(config, tokenizer, context, parts.train_dataset, tools_of)
    rewards = load_rewards(config, columns_of(prompts, environments), parts.reward_funcs)
    rewards += () if environments is None else environments.rewards
    if not rewards:
        raise ValueError(
            "--reward_funcs (missing): the environment has no get_reward and no step, so name a reward"
        )
    say(describe_rewards(rewards))
    if not config.eval_dataset:
        held_out: list[Prompt] = []
        if isinstance(prompts, EnvironmentTasks) and config.eval_steps:
            held_out = prompts.in_order(config.eval_samples)
        longest = prompts.longest if held_out else 0
        return RunData(prompts, rewards, held_out, prompts.longest, longest, environments)
    flag = "--eval_dataset"
    eval_prompts: PromptSource = load_prompts(
        for_evaluation(config), config.eval_dataset, flag, tokenizer, context, parts.eval_dataset, tools_of
    )
    if has_source_column(config.dataset):  # rewards may ask for it
        eval_prompts = MixedPrompts({read_name(config.eval_dataset).name: eval_prompts})
    try:  # an error now, not at the first evaluation
        load_rewards(config, columns_of(eval_prompts, environments), parts.reward_funcs)
    except ValueError as error:
        raise ValueError(f"{flag} {config.eval_dataset}: {error}") from error
    held_out = eval_prompts.in_order(config.eval_samples)
    return RunData(prompts, rewards, held_out, prompts.longest, eval_prompts.longest, environments)


def longest_row(data: RunData, config: TrainConfig, policy: Policy, world: World = ALONE) -> int:
    """Returns the most tokens of a prompt and completion together, in training or evaluation. A collective.

    Args:
        data: the run's data.
        config: its configuration.
        policy: its model.
        world: the ranks, which all get the same.

    Returns:
        The length that layouts, sampling and engines must be right for.
    """
    of = data.environments
    longest = longest_sequence(of, config, policy, data.longest, world)
    if not data.held_out:
        return longest
    return max(longest, longest_sequence(of, for_evaluation(config), policy, data.longest_held_out, world))
