"""Finds the columns that a reward may ask for."""

from __future__ import annotations

from ...rewards.functions import OF_EPISODES
from .environments import Environments
from .prompts import PromptSource


def columns_of(prompts: PromptSource, environments: Environments | None) -> set[str]:
    """Returns the names that a reward may ask for: the columns and, with environments, the arguments about episodes.

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
