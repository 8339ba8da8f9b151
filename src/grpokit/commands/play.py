"""`grpokit play`: an episode with tools or an environment in the terminal, played by you or by a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rich.text import Text

from ..common.console import console, say, waiting
from ..common.waiting import Waiting, together
from ..config.commands import PlayConfig
from ..config.options import EvalConfig
from ..data.rows import DatasetRow, read_rows
from ..environments.calls import Turn, find_parser
from ..environments.contract import EnvironmentFailed, load_environments
from ..environments.dialogue import Dialogue
from ..environments.setting import Limits, Setting
from ..environments.tools import load_tools
from ..environments.workers import Workers
from ..types import Messages, Prompt

COLORS = {"user": "cyan", "assistant": "green", "tool": "yellow"}
UNLIMITED = 1_000_000  # token limit when a person plays: there are no tokens to count
ENDINGS = {
    "done": "the environment said so",
    "no_call": "the turn calls no tool, and no environment answers it",
    "turns": "--max_turns",
    "length": "--max_completion_length or --max_turn_length",
}


def play(config: PlayConfig) -> None:
    """Plays one episode, and shows it.

    Raises:
        ValueError: an option can't work, or the environment failed. The message names it.
    """
    if not config.environment and not config.tools:
        raise ValueError(
            "--environment, --tools: name what to play with, such as --environment number_game.py:GuessNumber"
        )
    for name, least in (("row", 1), ("max_turns", 1), ("max_completion_length", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"--{name} {getattr(config, name)}: must be {least} or more")
    row = _row(config)
    try:
        if config.model:
            _watch(config, row)
        else:
            _play(config, row)
    except EnvironmentFailed as failed:
        raise ValueError(str(failed)) from failed


def _row(config: PlayConfig) -> DatasetRow:
    """Returns the row that the episode is about; an empty one without --dataset."""
    if not config.dataset:
        return DatasetRow("", {}, "the episode", "prompt")
    rows, _ = read_rows(config.dataset, limit=config.row)
    if len(rows) < config.row:
        raise ValueError(f"--row {config.row}: --dataset {config.dataset} has {len(rows)} rows")
    return rows[-1]


# --------------------------------------------------------------------------- what is shown


class Shown(Dialogue):
    """A dialogue that is shown while it goes on."""

    def open(self) -> Waiting[None]:
        """See `Dialogue.open`."""
        yield from super().open()
        for schema in self.schemas:
            function = schema["function"]
            names = ", ".join(function["parameters"].get("properties", {}))
            say(f"tool {function['name']}({names}): {function.get('description', '')}")
        _show([message for message in self.opening if message.get("content")])

    def reply(self, ids: Sequence[int], text: str, cut: bool, room: int) -> Waiting[list[int]]:
        """See `Dialogue.reply`."""
        said, reward = len(self.messages), self.reward
        found = yield from super().reply(ids, text, cut, room)
        _show([message for message in self.messages[said:] if self.is_news(message)])
        if self.reward != reward:
            say(f"reward {self.reward - reward:+g}")
        if self.ending is not None:
            say(f"the episode has ended: {self.ending} ({ENDINGS.get(self.ending, 'an error')})")
        return found

    def is_news(self, message: dict[str, Any]) -> bool:
        """Whether a message is not on the screen yet."""
        return True

    def final_reward(self) -> Waiting[float | None]:
        """See `Dialogue.final_reward`."""
        reward = yield from super().final_reward()
        if reward is not None:
            say(f"its reward: {reward:g}")
        return reward


def _show(messages: Messages) -> None:
    """Prints messages: the role, what was said, and the calls as JSON."""
    for message in messages:
        content = message.get("content") or ""
        lines = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)]
        lines += [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
        text = "\n".join(line for line in lines if line).replace("\n", "\n" + " " * 11)
        console.print(
            Text.assemble((f"{message['role']:<11}", COLORS.get(message["role"], "magenta")), text),
            soft_wrap=True,
        )


# --------------------------------------------------------------------------- a person plays


class Typed(Shown):
    """A dialogue whose turns are typed, so that it needs no tokenizer."""

    def tokenize(self, is_as_read: bool) -> None:
        """Finds no tokens."""

    def tokens_between(self, ids: Sequence[int], turn: Turn, following: Messages) -> list[int]:
        """Returns no tokens."""
        return []

    def is_news(self, message: dict[str, Any]) -> bool:
        """See `Shown.is_news`. A typed turn is on the terminal already. It is shown again only to show its parsed calls."""
        return message["role"] != "assistant" or "tool_calls" in message or not sys.stdin.isatty()


def _play(config: PlayConfig, row: DatasetRow) -> None:
    tools, kinds = load_tools(config.tools), load_environments(config.environment)
    for kind in kinds.values():
        _check_columns(kind.check_columns, row)
    setting = Setting(
        tokenizer=None,
        parser=find_parser(None, config.tool_parser),
        limits=Limits(config.max_turns, UNLIMITED, config.tool_timeout, None, 0),
        workers=Workers(8),
        seed=config.seed,
        eos_ids=frozenset(),
        tools=tools,
        kinds=kinds,
    )
    is_text = isinstance(row.content, str)
    content = [{"role": "user", "content": row.content}] if is_text else row.content
    dialogue = Typed(setting, Prompt(0, (), content, row.columns, row.source), 0)
    run: Callable[[Waiting[Any]], Any] = lambda piece: together([piece])[0]  # noqa: E731
    try:
        run(dialogue.open())
        if dialogue.schemas:
            name = dialogue.schemas[0]["function"]["name"]
            say(f'You are the model. To call a tool, type {{"name": "{name}", "arguments": {{...}}}}.')
        say("A line is a turn. Ctrl-D ends the episode.")
        while dialogue.ending is None:
            text = _typed_turn()
            if text is None:
                say("ended before the episode was over")
                return
            run(dialogue.reply((), text, False, UNLIMITED))
        run(dialogue.final_reward())
    finally:
        run(dialogue.close())
        setting.workers.close()


def _check_columns(check: Callable[[list[str]], None], row: DatasetRow) -> None:
    try:
        check(sorted(row.columns))
    except ValueError as error:
        raise ValueError(f"{error}; name rows that have it with --dataset") from error


def _typed_turn() -> str | None:
    """Reads a line; None at the end of the input."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines with it
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        print()
        return None


# --------------------------------------------------------------------------- a model plays


def _watch(config: PlayConfig, row: DatasetRow) -> None:
    """Has the model play. The episode is sampled as in training."""
    from ..config.sampling_rules import sampling_rules
    from ..data.tokenizing import tokenize
    from ..training.setup.environments import episode_sampler, find_environments
    from ..training.setup.form import find_tokenizer, prompt_form
    from ..training.setup.models import load_configured, set_threads
    from ..training.setup.parts import Parts
    from ..training.setup.samplers import make_sampler

    names = ("environment", "tools", "model", "dataset", "seed", "tool_parser", "max_turns", "tool_timeout")
    names += (
        "max_completion_length",
        "max_turn_length",
        "trust_remote_code",
        "temperature",
        "top_p",
        "top_k",
    )
    names += ("min_p", "repetition_penalty", "chat_template", "chat_template_kwargs", "generation_prefix")
    options = EvalConfig(**{name: getattr(config, name) for name in names})
    with waiting("loading the model"):
        for rule in sampling_rules():
            rule.check(options)
        tokenizer = find_tokenizer(options, Parts(), options.model)
        environments = find_environments(options, Parts(), tokenizer)
        if environments is None:
            raise ValueError("--environment, --tools: name what the model plays with")
        for kind in environments.kinds.values():
            _check_columns(kind.check_columns, row)
        policy = load_configured(options.model, options)
        set_threads(options, policy)
    prompt = tokenize(row, tokenizer, prompt_form(options, environments.tools_of))
    turns = make_sampler(options, policy, tokenizer, options.seed)
    episodes = episode_sampler(environments, options, policy, tokenizer, turns)

    def shown(prompt: Prompt, generation: int) -> Shown:
        begun: Any = episodes.begin(prompt, generation)
        return Shown(begun.setting, prompt, generation)

    replace(episodes, begin=shown).sample([prompt], 1)
