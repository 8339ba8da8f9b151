"""Prompts for environments that own their data. There are no dataset rows: each position is a task of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Messages, Prompt
from .form import PLAIN, PromptForm


class EnvironmentTasks:
    """An endless prompt order without a dataset. What the model reads comes from the environment's `reset`.

    A task is its position: `reset(seed=...)` gets a seed that depends on it.

    Args:
        names: the values of the column `environment`, which take turns; ("",) for a single environment.
        longest: tokens of the longest prompt that is known.
        form: how prompts are written.

    Example:
        >>> tasks = EnvironmentTasks(("calc", "game"), longest=20)
        >>> [(prompt.source, dict(prompt.columns)) for prompt in tasks.take(2, 2)]
        [('task 2', {'environment': 'calc'}), ('task 3', {'environment': 'game'})]
    """

    def __init__(self, names: Sequence[str], longest: int, form: PromptForm = PLAIN) -> None:
        self.names, self.longest = tuple(names), longest
        self.columns = set() if self.names == ("",) else {"environment"}
        system, self._prefix = form.system_prompt, form.prefix
        self._before: Messages = [{"role": "system", "content": system}] if system else []

    def at(self, position: int) -> Prompt:
        """Returns the task at `position`. It has no tokens before `reset`."""
        name = self.names[position % len(self.names)]
        columns = {"environment": name} if name else {}
        content = [dict(message) for message in self._before]
        return Prompt(position, (), content, columns, f"task {position}", self._prefix)

    def take(self, position: int, count: int) -> list[Prompt]:
        """Returns the `count` tasks from `position` on."""
        return [self.at(position + offset) for offset in range(count)]

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """Returns the first `limit` tasks, for evaluation. There, `reset` gets other seeds than in training."""
        return self.take(0, limit or 0)

    def reaches(self, position: int) -> bool:
        """Tells whether there is a task at `position`: there always is."""
        return True

    def checked(self) -> list[Prompt]:
        """Returns no prompt: there is none to look at before `reset`."""
        return []

    def check_ids(self, rows: int) -> None:
        """Nothing to check before `reset`."""

    def data_state(self, position: int) -> None:
        """Returns None: a task is a function of seed and position, so there is no state to save."""

    def restore(self, saved: None) -> None:
        """Nothing to restore."""
