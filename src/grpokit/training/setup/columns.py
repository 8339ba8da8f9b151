"""Finds the columns that a reward may ask for, and looks for the values that lead to a reward."""

from __future__ import annotations

from collections.abc import Sequence

from ...common.console import say
from ...rewards import Reward
from ...rewards.functions import OF_EPISODES
from ...rewards.routes import empty_routes
from ...types import Prompt
from .environments import Environments
from .prompts import PromptSource


def note_empty_routes(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> None:
    """Says which values of --reward_routes none of the prompts has."""
    for found in empty_routes([reward.route for reward in rewards], prompts):
        say(f"note: --reward_routes {found}")


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
