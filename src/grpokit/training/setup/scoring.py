"""Makes the rewards of a configuration, and finds the columns that they may ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ...config.options import ModelConfig
from ...rewards import Reward, load_rewards
from ...rewards.scoring import OF_EPISODES
from .environments import Environments
from .prompts import PromptSource


def make_rewards(
    config: ModelConfig,
    columns: Collection[str],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    specs: tuple[str, ...] | None = None,
) -> tuple[Reward, ...]:
    """Makes the rewards of a configuration, checked against the dataset's columns.

    Args:
        config: the options of the rewards.
        columns: the dataset's columns.
        functions: objects from Python, by the names that --reward_funcs has for them.
        specs: other rewards than those of --reward_funcs, each of weight 1.

    Returns:
        The rewards.

    Raises:
        ValueError: one can't be found, or needs a column that is missing.
    """
    of_training = specs is None or specs == config.reward_funcs
    return load_rewards(
        config.reward_funcs if specs is None else specs,
        config.reward_weights if of_training else (),
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
    environments.check_rows(prompts.checked())
    return columns | set(OF_EPISODES)
