"""Prepares the prompts of environments that own their data."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...common.console import say
from ...config.options import ModelConfig
from ...data.tasks import EnvironmentTasks
from ...environments.dialogue import Dialogue
from ...rollouts.other_side import open_each
from ...types import EpisodeFailed
from .environments import Environments, make_setting
from .form import prompt_form

TRIED = 8  # number of tasks whose prompts are measured at the start, if there is no dataset


def load_tasks(
    environments: Environments, config: ModelConfig, tokenizer: Any, context: int | None
) -> EnvironmentTasks:
    """Prepares the tasks of environments that own their data, and tries `reset` for some of them.

    Args:
        environments: the tools and environments.
        config: the configuration, without --dataset.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.

    Returns:
        The tasks.

    Raises:
        ValueError: there is no environment, or one of them makes no prompt.
    """
    if not environments.kinds:
        raise ValueError("--dataset (missing): --tools have no prompts of their own, so name a dataset")
    names = tuple(environments.kinds)
    tasks = EnvironmentTasks(names, 0, prompt_form(config))
    environments.check_columns(tasks.columns)
    setting = make_setting(environments, config, tokenizer, context, config.seed, frozenset())
    tried, failed = [], None
    try:
        for prompt in tasks.take(0, max(TRIED, len(names))):
            try:
                tried += open_each([partial(Dialogue, setting, prompt, 0)])
            except EpisodeFailed as error:
                if not environments.max_errors:
                    raise
                failed = error
        if failed is not None and not tried:
            raise failed
    finally:
        setting.workers.close()
    tasks.longest = max(len(dialogue.prompt_ids) for dialogue in tried)
    for kind in environments.kinds.values():
        if "seed" not in kind.takes and not kind.takes_all:
            say(
                f"note: reset of {kind.name} takes no `seed`, so members of a group may meet different tasks, and a resumed run "
                "other ones"
            )
    who = ", ".join(dict.fromkeys(kind.name for kind in environments.kinds.values()))
    say(f"prompts: made by {who}; the longest of {len(tried)} tasks has {tasks.longest} tokens")
    return tasks
