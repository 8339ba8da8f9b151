"""Loads the prompts and the rewards of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...config.sampled import for_evaluation
from ...data.form import ToolsOf
from ...data.memory import is_listed, memory_source
from ...data.prompts import Prompts
from ...data.rows import describe_dataset, named_row, read_rows
from ...data.sources import HELD_OUT, TRAINING, open_dataset
from ...data.stream import PromptStream
from ...data.tasks import EnvironmentTasks
from ...data.tokenizing import require_template, tokenize
from ...parallel import ALONE, World
from ...policy.policy import Policy
from ...rewards import Reward, describe_rewards, load_rewards
from ...rewards.scoring import OF_EPISODES
from ...types import Prompt
from .environments import Environments, find_environments, longest_sequence
from .form import prompt_form
from .models import prompt_limit
from .parts import Parts
from .tasks import load_tasks

PromptSource = Prompts | PromptStream | EnvironmentTasks
"""Where the prompts of a run come from: rows, an iterable, or an environment."""


def load_prompts(
    config: ModelConfig,
    path: str,
    flag: str,
    tokenizer: Any,
    context: int | None,
    rows: Any = None,
    tools_of: ToolsOf | None = None,
) -> Prompts:
    """Loads the prompts of a dataset, tokenized and measured against the model's context, and says what it is.

    Args:
        config: the options of the data.
        path: the dataset's path or name.
        flag: the option that named it, for messages.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: rows in memory, in the place of `path`.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

    Returns:
        The prompts.

    Raises:
        ValueError: the dataset can't be read, or a prompt is too long.
    """
    longest, reason = prompt_limit(config, context)
    trains = isinstance(config, TrainConfig) and flag == "--dataset"
    if rows is None:
        split = config.eval_split if isinstance(config, TrainConfig) and not trains else config.dataset_split
        source = open_dataset(path, flag, split, TRAINING if trains else HELD_OUT)
    else:
        source = memory_source(rows, "train_dataset" if trains else flag.removeprefix("--"))
    limit = config.max_samples if flag == "--dataset" else 0  # the other has --eval_samples
    read, skipped = read_rows(source, config.skip_bad_rows, limit=limit)
    say(describe_dataset(source, read))
    prompts = Prompts(
        read,
        tokenizer,
        max_prompt_length=longest,
        limit_reason=reason,
        long_prompts=config.long_prompts,
        seed=config.seed,
        skip_bad_rows=config.skip_bad_rows,
        skipped_rows=skipped,
        flag=flag,
        shuffle=config.shuffle if isinstance(config, TrainConfig) else True,
        form=prompt_form(config, tools_of),
    )
    if prompts.skipped:
        say(f"{path}: skipped {prompts.skipped} bad rows, the first: {prompts.skipped_rows[0]}")
    if prompts.dropped:
        say(f"{path}: dropped {prompts.dropped} prompts longer than {longest} tokens")
    if prompts.truncated:
        say(f"{path}: cut {prompts.truncated} prompts to their last {longest} tokens")
    return prompts


def load_stream(
    config: TrainConfig, tokenizer: Any, context: int | None, rows: Any, tools_of: ToolsOf | None = None
) -> PromptStream:
    """Prepares the prompts of an iterable, which is read as steps need them.

    Args:
        config: the options of the data.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: the iterable.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

    Returns:
        The prompts, in the order of the iterable.

    Raises:
        ValueError: nothing bounds the length of its prompts, or it has no row.
    """
    if config.max_samples:
        raise ValueError(
            "--max_samples: an iterable is read lazily; cut it yourself: itertools.islice(rows, n)"
        )
    longest, _ = prompt_limit(config, context)
    if longest is None:
        raise ValueError(
            "--max_prompt_length: an iterable is read lazily and the model's config has no context length, so that nothing "
            "bounds a prompt; set it"
        )

    form = prompt_form(config, tools_of)

    def fit(values: Any, place: str) -> Prompt | None:
        try:
            row = named_row(values, place)
            require_template([row], tokenizer)
            prompt = tokenize(row, tokenizer, form)
        except ValueError:
            if config.skip_bad_rows:
                return None
            raise
        if len(prompt.ids) <= longest:
            return prompt
        if config.long_prompts == "truncate_left":
            return replace(prompt, ids=prompt.ids[-longest:])
        if config.long_prompts == "drop":
            return None
        raise ValueError(
            f"{prompt.source}: the prompt has {len(prompt.ids)} tokens, over {longest}; raise --max_prompt_length, or use "
            "--long_prompts truncate_left or drop"
        )

    # `take` calls to keep: one per sampling round of this step and of the step sampled ahead, and one for held-back state.
    stream = PromptStream(rows, fit, longest, kept_reads=2 * (1 + config.max_resample_times) + 1)
    columns = ", ".join(sorted(stream.columns)) or "none beside the prompt"
    say(f"train_dataset {type(rows).__name__}: read as steps need it, in its own order; columns: {columns}")
    return stream


def load_training_prompts(
    config: TrainConfig,
    tokenizer: Any,
    context: int | None,
    rows: Any = None,
    tools_of: ToolsOf | None = None,
) -> PromptSource:
    """Loads the prompts to train on.

    Args:
        config: the options of the data.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: rows in memory or an iterable, in the place of --dataset.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

    Returns:
        The prompts.
    """
    if rows is None or is_listed(rows):
        return load_prompts(config, config.dataset, "--dataset", tokenizer, context, rows, tools_of)
    return load_stream(config, tokenizer, context, rows, tools_of)


def make_rewards(
    config: ModelConfig,
    columns: Collection[str],
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> tuple[Reward, ...]:
    """Makes the rewards of a configuration, checked against the dataset's columns.

    `functions` are objects from Python, by the names that --reward_funcs has for them.
    """
    return load_rewards(
        config.reward_funcs,
        config.reward_weights,
        answer_column=config.answer_column,
        format_pattern=config.format_pattern,
        max_completion_length=config.max_completion_length,
        soft_cache_length=config.soft_cache_length,
        repetition_n_grams=config.repetition_n_grams,
        repetition_max_penalty=config.repetition_max_penalty,
        columns=columns,
        functions=functions or {},
    )


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
    if isinstance(prompts, Prompts):
        environments.check_rows(prompts.in_order())
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
    rewards = make_rewards(config, columns_of(prompts, environments), parts.reward_funcs)
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
    eval_prompts = load_prompts(
        for_evaluation(config), config.eval_dataset, flag, tokenizer, context, parts.eval_dataset, tools_of
    )
    try:  # an error now, not at the first evaluation
        make_rewards(config, columns_of(eval_prompts, environments), parts.reward_funcs)
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
