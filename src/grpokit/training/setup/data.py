"""Loads the data of a run: prompts, rewards and held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.console import say
from ...config.options import TrainConfig
from ...config.sampled import for_evaluation
from ...data.tasks import EnvironmentTasks
from ...parallel import ALONE, World
from ...policy.policy import Policy
from ...rewards import Reward, describe_rewards, load_rewards, pass_note
from ..early_stop import check_early_stop
from ..teacher import check_teachers
from .columns import columns_of, note_empty_routes
from .environments import Environments, find_environments, longest_sequence
from .held_out import HeldOutSet, load_held_out
from .parts import Parts
from .prompts import PromptSource, load_training_prompts
from .tasks import load_tasks


@dataclass(frozen=True)
class RunData:
    """The data of a run: its prompts, rewards and held-out prompts."""

    prompts: PromptSource
    rewards: tuple[Reward, ...]
    held_out: list[HeldOutSet]  # the sets of --eval_dataset
    longest: int  # tokens of the longest prompt to train on
    environments: Environments | None  # the tools and environments, where there are any


def load_data(
    config: TrainConfig,
    tokenizer: Any,
    context: int | None,
    parts: Parts,
) -> RunData:
    """Loads the prompts, the rewards and the held-out prompts of a run.

    A run calls it before it loads the weights, which takes longest, so that mistakes in the data and the rewards are found first.

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
    check_teachers(config, tokenizer, columns_of(prompts, environments))
    if not rewards and not config.teacher:
        raise ValueError(
            "--reward_funcs (missing): the environment has no get_reward and no step, so name a reward"
        )
    say(describe_rewards(rewards) if rewards else "rewards: none; the run learns from its teacher alone")
    held_out = load_held_out(config, tokenizer, context, parts, environments, rewards)
    if isinstance(prompts, EnvironmentTasks) and config.eval_steps and not held_out:
        tasks = prompts.in_order(config.eval_samples)
        held_out = [HeldOutSet("", tasks, rewards, prompts.longest)]
    sets = {each.name: each.rewards for each in held_out}
    check_early_stop(config.early_stop, sets, config.eval_generations)
    for note in dict.fromkeys(pass_note(each.rewards) for each in held_out):
        if note:
            say(note)
    if config.reward_routes:
        evaluated = [prompt for each in held_out for prompt in each.prompts]
        note_empty_routes(rewards, [*prompts.checked(), *evaluated])
    return RunData(prompts, rewards, held_out, prompts.longest, environments)


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
    evaluates = for_evaluation(config)
    held_out = [longest_sequence(of, evaluates, policy, each.longest, world) for each in data.held_out]
    return max([longest, *held_out])
