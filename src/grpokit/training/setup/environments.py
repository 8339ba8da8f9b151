"""Sets up tools and environments from a configuration: what answers the model in each episode of a run."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...common.console import say
from ...common.text import FROM_PYTHON, did_you_mean
from ...config.options import ModelConfig, TrainConfig
from ...data.form import PromptForm, ToolsOf
from ...environments.calls import TurnParser, find_parser
from ...environments.continuation import CannotContinue, Continuation
from ...environments.contract import EnvironmentKind, inspect_environment, kind_of, load_environments
from ...environments.dialogue import Dialogue
from ...environments.setting import Limits, Setting
from ...environments.templates import check_template
from ...environments.tools import Tool, by_name, load_tools, make_tool
from ...environments.workers import Workers
from ...parallel import ALONE, World
from ...policy.load import eos_token_ids
from ...policy.policy import Policy
from ...rewards import Reward
from ...rollouts.dropped import ErrorBudget
from ...rollouts.episodes import EpisodeSampler
from ...rollouts.written import written_text
from ...types import Prompt
from .form import prompt_form
from .models import context_of, prompt_limit
from .parts import Parts


@dataclass(frozen=True)
class Environments:
    """The tools and environments of a run. `find_environments` makes them, and finds None where there are none."""

    tools: Mapping[str, Tool]
    kinds: Mapping[str, EnvironmentKind]
    parser: TurnParser
    max_errors: int = 0  # episodes of the run that may be dropped

    @property
    def tools_of(self) -> ToolsOf:
        """Returns the function that finds the schemas which a row's prompt shows."""
        own = [dict(tool.schema) for tool in self.tools.values()]

        def schemas(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
            kind = kind_of(self.kinds, columns)
            of_rows = [schema for schema in columns.get("tools") or () if isinstance(schema, dict)]
            return own + (kind.schemas if kind is not None else []) + of_rows

        return schemas

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """The environments' own rewards, of weight 1, named by their classes."""
        rewarding = (kind for kind in self.kinds.values() if kind.has_reward or kind.has_steps)
        names = dict.fromkeys(kind.name for kind in rewarding)  # one class may have two names
        return tuple(Reward(name, _reward_of(name), kind="of the environment") for name in names)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises ValueError where a `reset` needs a column that the dataset lacks, or a column has a name of ours."""
        for taken in ("environments", "environment_rewards", "seed", "generation"):
            if taken in columns:
                raise ValueError(
                    f"--dataset: the column `{taken}` hides what environments and rewards get; rename it"
                )
        for kind in self.kinds.values():
            kind.check_columns(sorted(columns))

    def check_rows(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for the first row whose column `environment` names no environment, if the run has named ones."""
        for prompt in prompts if len(self.kinds) > 1 else ():
            name = prompt.columns.get("environment")
            if name not in self.kinds:
                has = "has no column `environment`"
                if "environment" in prompt.columns and name is not None:
                    has = f"has {name!r} as its `environment`{did_you_mean(str(name), self.kinds)}"
                raise ValueError(
                    f"--environment: {prompt.source} {has}; expected one of {', '.join(self.kinds)}, which chooses the row's "
                    "environment"
                )


def _reward_of(name: str) -> Any:
    def reward(environment_rewards: list[tuple[str, float | None]]) -> list[float | None]:
        return [value if kind == name else None for kind, value in environment_rewards]

    return reward


def find_environments(config: ModelConfig, parts: Parts, tokenizer: Any) -> Environments | None:
    """Loads the tools and environments of a configuration, and says how calls are found.

    Args:
        config: --tools, --environment and --tool_parser.
        parts: the tools and environments given from Python.
        tokenizer: the model's.

    Returns:
        The tools and environments, or None if the run has none.

    Raises:
        ValueError: a tool or environment can't be loaded or described, or the tokenizer has no chat template.
    """
    given = parts.environment_factory
    for option, names, is_given in (
        ("tools", config.tools, bool(parts.tools)),
        ("environment", config.environment, given is not None),
    ):
        of_python = [name for name in names if name.startswith(FROM_PYTHON)]
        if of_python and not is_given:
            raise ValueError(
                f"--{option} {of_python[0]}: was given from Python; go on from Python, or name a file: file.py:name"
            )
    loaded = [make_tool(function) for function in parts.tools]
    named = load_tools([name for name in config.tools if not name.startswith(FROM_PYTHON)])
    tools = by_name([*named.values(), *loaded], "--tools")
    kinds = load_environments([name for name in config.environment if not name.startswith(FROM_PYTHON)])
    if given is not None:
        many = given if isinstance(given, Mapping) else {"": given}
        kinds |= {name: inspect_environment(factory) for name, factory in many.items()}
    if not tools and not kinds:
        return None
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "--tools, --environment: the tokenizer has no chat template, so turns can't follow each other; use an instruct "
            "model, or put a chat_template.jinja into the model's directory"
        )
    schemas = [dict(tool.schema) for tool in tools.values()]
    for kind in kinds.values():
        for name in (schema["function"]["name"] for schema in kind.schemas):
            if name in tools:
                raise ValueError(
                    f"--tools: {name} is a method of the environment {kind.name} too, and the model could not tell them apart; "
                    "rename one of them"
                )
    schemas += [schema for kind in kinds.values() for schema in kind.schemas]
    parser = find_parser(tokenizer, config.tool_parser, schemas)
    form = prompt_form(config)
    _check_template(tokenizer, parser, schemas, any(kind.has_steps for kind in kinds.values()), form)
    names = ", ".join(schema["function"]["name"] for schema in schemas)
    if names:
        say(f"tools: {names}; calls are read as {parser.where}")
    for kind in kinds.values():
        say(
            f"environment {kind.name}: {'answers by step' if kind.has_steps else 'answers calls of its tools'}"
        )
    return Environments(tools, kinds, parser, config.max_environment_errors)


def _check_template(
    tokenizer: Any,
    parser: TurnParser,
    schemas: Sequence[dict[str, Any]],
    has_steps: bool,
    form: PromptForm,
) -> None:
    """Checks the chat template and prints notes about it. Raises ValueError if messages can't follow a turn of the model."""
    eos = tokenizer.eos_token_id
    ends = {eos} if eos is not None else set()
    continuation = Continuation(tokenizer, ends, schemas, form.template_kwargs, form.prefix)
    try:
        for note in check_template(continuation, eos, parser, schemas, has_steps):
            say(f"note: {note}")
    except CannotContinue as error:
        raise ValueError(f"--tools, --environment: the model's turns can't be followed: {error}") from error


def make_setting(
    environments: Environments,
    config: ModelConfig,
    tokenizer: Any,
    context: int | None,
    seed: int,
    eos_ids: frozenset[int],
) -> Setting:
    """Makes what all episodes of a sampler share.

    Args:
        environments: the tools and environments.
        config: the limits.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        seed: the sampler's seed.
        eos_ids: the tokens that end a turn.

    Returns:
        The setting. Its workers are the caller's to close.
    """
    return Setting(
        tokenizer=tokenizer,
        parser=environments.parser,
        limits=Limits(
            max_turns=config.max_turns,
            max_tokens=config.max_completion_length,
            tool_timeout=config.tool_timeout,
            max_prompt=prompt_limit(config, context)[0],
            max_tool_tokens=config.max_tool_output,
        ),
        workers=Workers(config.environment_workers),
        seed=seed,
        eos_ids=eos_ids,
        tools=environments.tools,
        kinds=environments.kinds,
        form=prompt_form(config, environments.tools_of),
    )


def episode_sampler(
    environments: Environments,
    config: ModelConfig,
    policy: Policy,
    tokenizer: Any,
    sampler: Any,
    world: World = ALONE,
) -> EpisodeSampler:
    """Makes the sampler of episodes on top of a sampler of turns.

    Args:
        environments: the tools and environments.
        config: the limits.
        policy: the model.
        tokenizer: its tokenizer.
        sampler: the engine (`TurnEngine`); its seed keys the episodes too.
        world: the ranks.

    Returns:
        The sampler.
    """
    tokenizer = copy.deepcopy(
        tokenizer
    )  # it serves one thread at a time, and episodes may be played on another
    eos = frozenset(eos_token_ids(policy.model, tokenizer))
    setting = make_setting(environments, config, tokenizer, context_of(policy), sampler.seed, eos)

    def begin(prompt: Prompt, generation: int) -> Dialogue:
        return Dialogue(setting, prompt, generation)

    episodes = EpisodeSampler(
        sampler,
        begin,
        lambda ids: written_text(tokenizer, ids, ()),
        max_length=config.max_completion_length,
        max_turn_length=config.max_turn_length,
        batch_size=getattr(sampler, "batch_size", 0),  # an engine elsewhere has no batches
        stop=sampler.stop,
        budget=ErrorBudget(environments.max_errors),
        world=world,
    )
    weakref.finalize(episodes, setting.workers.close)
    return episodes


def with_episodes(
    environments: Environments | None,
    policy: Policy,
    tokenizer: Any,
    make_turns: Callable[[int, TrainConfig], Any],
    world: World = ALONE,
) -> Callable[[int, TrainConfig], Any]:
    """Prepares the sampler of a run's episodes, where there are tools or environments.

    Args:
        environments: the tools and environments, or None: completions have one turn.
        policy: the model.
        tokenizer: its tokenizer.
        make_turns: (seed, configuration) → the sampler of turns.
        world: the ranks.

    Returns:
        A function: (seed, configuration) → the sampler.

    Raises:
        ValueError: the engine can't continue a conversation.
    """
    if environments is None:
        return make_turns
    many = environments

    def make(seed: int, config: TrainConfig) -> EpisodeSampler:
        engine = make_turns(seed, config)
        if not hasattr(engine, "turns"):
            raise ValueError(
                f"--sampler {config.sampler}: tools and environments need an engine that continues turns, and "
                f"{type(engine).__name__} has no method turns(); use --sampler transformers or vllm"
            )
        return episode_sampler(many, config, policy, tokenizer, engine, world)

    return make


def longest_sequence(
    environments: Environments | None,
    config: ModelConfig,
    policy: Policy,
    longest_prompt: int,
    world: World = ALONE,
) -> int:
    """Returns the most tokens of a prompt and completion together. An environment may add to a prompt when it is reset.

    Args:
        environments: the tools and environments.
        config: the configuration.
        policy: the model.
        longest_prompt: tokens of the longest prompt that is known.
        world: the ranks, which all get the same.

    Returns:
        The length that layouts, sampling and engines must be right for.
    """
    if environments is not None and environments.kinds:
        limit = prompt_limit(config, context_of(policy))[0]
        longest_prompt = longest_prompt if limit is None else limit
    return max(world.gather_json(longest_prompt)) + config.max_completion_length
