"""Finds reward functions by name, `"file.py:function"` or directory, and passes them the arguments they ask for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

from ..common.imports import load_object, raised_at
from ..common.text import BUILT_IN_REWARDS, FROM_PYTHON, did_you_mean, one_line
from ..config.options import ModelConfig
from ..types import SAMPLED, Prompt
from . import builtin
from .accuracy import accuracy_reward
from .builtin import RewardFunction
from .cosine import cosine_reward
from .judge import judge_reward
from .model import is_reward_model, load_reward_model
from .reporting import REPORTED
from .routes import Route, find_routes
from .signatures import TRL, adapt_signature, is_async, unwrap

BUILT_IN = BUILT_IN_REWARDS


@dataclass(frozen=True)
class Reward:
    """A reward function with its name, as in `rewards/<name>/mean`, and its weight in the sum.

    `fn(completions, **columns)` returns one number per completion, or None where it does not apply. It is called by keyword
    with what its signature asks for. Each argument is a list with one entry per completion:

    * `prompts`: texts, or messages for a chat;
    * `completions`: texts, or `[{"role": "assistant", "content": text}]` where the prompt is a chat;
    * `completion_ids`: lists of token ids;
    * any column of the dataset; `**kwargs` asks for everything.

    Beside lists, it gets TRL's `trainer_state`, `log_metric` and `log_extra`.
    """

    name: str
    fn: RewardFunction
    weight: float = 1.0
    kind: str = TRL  # the signature that the function had
    limited: bool = True  # whether the time limit applies
    route: Route | None = None  # the rows that it scores; None: all

    def applies_to(self, prompt: Prompt) -> bool:
        """Tells whether the function is called with completions of `prompt`."""
        return self.route is None or self.route.leads_to(prompt)


Maker = Callable[[ModelConfig, Collection[str]], RewardFunction]  # (the options, the dataset's columns)
_MAKERS: dict[str, Maker] = {
    "exact_match": lambda c, columns: builtin.exact_match_reward(c.answer_column, columns),
    "format": lambda c, columns: builtin.format_reward(c.format_pattern),
    "length": lambda c, columns: builtin.length_reward(c.max_completion_length),
    "accuracy": lambda c, columns: accuracy_reward(c.answer_column, columns),
    "format_tags": lambda c, columns: builtin.format_tags,
    "boxed": lambda c, columns: builtin.boxed,
    "soft_overlong": lambda c, columns: builtin.soft_overlong_reward(
        c.max_completion_length, c.soft_cache_length
    ),
    "repetition": lambda c, columns: builtin.repetition_reward(
        c.repetition_n_grams, c.repetition_max_penalty
    ),
    "cosine": cosine_reward,
    "judge": judge_reward,
}
# These have limits of their own for each answer, and must not be stopped because many answers were slow.
UNLIMITED = ("accuracy", "cosine", "judge")


def load_rewards(
    config: ModelConfig,
    columns: Collection[str],
    functions: Mapping[str, RewardFunction] | None = None,
) -> tuple[Reward, ...]:
    """Loads the rewards that `--reward_funcs` names, and checks them against the dataset before anything is sampled.

    Args:
        config: the options of the rewards: which there are (built-in names, `"file.py:function"` or
            `"package.module:function"`, the directory of a reward model), their weights and routes, and how the built-in
            ones are set.
        columns: names of the dataset's columns.
        functions: objects from Python, by the names that --reward_funcs has for them.

    Returns:
        The rewards, in the order of --reward_funcs.

    Raises:
        ValueError: an unknown or repeated name, something that is no function, a wrong number of weights, a route that
            leads nowhere, or a function that asks for an argument that does not exist. The message names the flag, the
            value and what would work.
    """
    specs, weights = config.reward_funcs, config.reward_weights
    taken = sorted({*SAMPLED, *REPORTED} & set(columns))
    if taken:
        raise ValueError(f"--dataset: rewards get the run's `{taken[0]}`; rename the column of that name")
    if weights and (len(weights) != len(specs) or not all(map(math.isfinite, weights))):
        shown = " ".join(map(str, weights))
        raise ValueError(
            f"--reward_weights {shown}: expected {len(specs)} finite numbers, one for each reward"
        )
    rewards: list[Reward] = []
    for spec, weight in zip(specs, weights or [1.0] * len(specs), strict=True):
        reward = replace(_load(spec, config, columns, functions or {}), weight=float(weight))
        if reward.name in {other.name for other in rewards}:
            raise ValueError(
                f"--reward_funcs {spec}: a second `{reward.name}`; rename one, metrics go by name"
            )
        check_parameters(reward, columns)
        rewards.append(reward)
    routes = find_routes(config.reward_routes, [reward.name for reward in rewards], columns)
    return tuple(replace(reward, route=routes.get(reward.name)) for reward in rewards)


def _load(
    spec: str, config: ModelConfig, columns: Collection[str], functions: Mapping[str, RewardFunction]
) -> Reward:
    """Returns the reward that a value of --reward_funcs names."""
    if spec in _MAKERS:
        return Reward(spec, _MAKERS[spec](config, columns), kind="built in", limited=spec not in UNLIMITED)
    if is_reward_model(spec):
        name = Path(spec.partition("@")[0]).resolve().name
        return Reward(name, load_reward_model(spec), kind="a reward model")
    column = partial(builtin.find_answer_column, config.answer_column, columns, spec)
    fn, was_class = _load_function(spec, functions)
    fn, kind = adapt_signature(fn, column, was_class)
    return Reward(spec.rpartition(":")[2], fn, kind=kind)


# Built-in rewards that (almost) never give 1, with the most that they give.
BELOW_PASS = {
    "cosine": "gives less than 1 to every completion that has a token",
    "judge": "gives 1 for 10 of 10 alone",
    "length": "gives less than 1 to every completion that has a token",
    "repetition": "gives 0 or less",
    "soft_overlong": "gives 0 or less",
}


def pass_note(rewards: Sequence[Reward]) -> str | None:
    """Says where an evaluation's pass@k would say little, because its first reward is one that never gives 1; else None."""
    first = rewards[0] if rewards else None
    if first is None or first.kind != "built in" or first.name not in BELOW_PASS:
        return None
    return (
        f"note: a completion passes (pass@k) where the first reward gives at least 1, and {first.name} {BELOW_PASS[first.name]}; "
        "name another reward first to measure it"
    )


def describe_rewards(rewards: Sequence[Reward]) -> str:
    """Says in one line, for the start of the run, which kind of function each reward is."""
    shown = [
        f"{reward.name} ({reward.kind}{', async' if is_async(reward.fn) else ''})"
        + (f" × {reward.weight:g}" if reward.weight != 1 else "")
        + (f" for {reward.route}" if reward.route else "")
        for reward in rewards
    ]
    return f"rewards: {', '.join(shown)}"


def check_parameters(reward: Reward, columns: Collection[str]) -> None:
    """Checks that every parameter that `reward` requires is sampled or one of `columns`; else raises ValueError."""
    known = {*SAMPLED, *REPORTED, *columns}
    for parameter in _parameters(reward):
        named = parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if named and parameter.default is Parameter.empty and parameter.name not in known:
            raise ValueError(
                f"{defined_at(reward.fn)}: reward function `{reward.name}` requires `{parameter.name}`"
                f"{did_you_mean(parameter.name, known)}, which isn't there; there are {', '.join(SAMPLED)}, and "
                f"the dataset's columns: {', '.join(sorted(columns)) or 'none'}"
            )


def arguments(
    reward: Reward, available: Mapping[str, Any], only_named: Collection[str] = ()
) -> tuple[list[Any], dict[str, Any]]:
    """Returns (positional, by name): the part of `available` that the signature of `reward` asks for.

    A parameter that is not available keeps its default. `check_parameters` has refused those without one. `**kwargs` does
    not ask for the names in `only_named`.
    """
    parameters = _parameters(reward)
    named = {parameter.name for parameter in parameters}
    available = {name: value for name, value in available.items() if name in named or name not in only_named}
    first = [parameter for parameter in parameters if parameter.kind is Parameter.POSITIONAL_ONLY]
    positional = [available.get(parameter.name, parameter.default) for parameter in first]
    rest = {name: value for name, value in available.items() if name not in {p.name for p in first}}
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return positional, rest
    return positional, {p.name: rest[p.name] for p in parameters if p.name in rest}


def asks_to_log(reward: Reward) -> bool:
    """Tells whether the function asks for `log_metric` or `log_count`, by name or by `**kwargs`."""
    return any(
        parameter.kind is Parameter.VAR_KEYWORD or parameter.name in ("log_metric", "log_count")
        for parameter in _parameters(reward)
    )


def defined_at(fn: RewardFunction) -> str:
    """Returns `"file:line"` of the function's definition, under its decorators; its repr if it is not Python."""
    code = code_of(fn)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(fn)


def code_of(fn: RewardFunction) -> Any:
    """Returns the code object of a function, method, partial or callable object; None if it is not Python."""
    inner = unwrap(fn)
    return getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)


def _load_function(spec: str, functions: Mapping[str, RewardFunction]) -> tuple[RewardFunction, bool]:
    """Returns the function to call, and whether it was made from a class."""
    if spec.startswith(FROM_PYTHON) and spec not in functions:
        raise ValueError(
            f"--reward_funcs {spec}: was given from Python as a function without a file, so that only the same script can "
            "give it again; put it into a file and name it file.py:function"
        )
    if ":" not in spec and not spec.endswith(".py") and spec not in functions:
        raise ValueError(
            f"--reward_funcs {spec}: no built-in reward of that name{did_you_mean(spec, BUILT_IN)}; built in are "
            f"{', '.join(BUILT_IN)}; your own is file.py:function, a reward model its directory"
        )
    fn = functions[spec] if spec in functions else load_object(spec, "--reward_funcs")
    was_class = isinstance(fn, type)
    if was_class:
        fn = _made(fn, spec)
    if not callable(fn):
        raise ValueError(
            f"--reward_funcs {spec}: a {type(fn).__name__}; expected a function f(completions, ...)"
        )
    try:
        inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--reward_funcs {spec}: {error}; wrap it in a def f(completions, ...)") from error
    return fn, was_class


def _made(cls: type, spec: str) -> RewardFunction:
    """Makes an object of a class, which is what ms-swift's users name.

    Raises ValueError where its objects cannot be called, or it cannot be made without arguments.
    """
    if not any("__call__" in vars(base) for base in cls.__mro__):
        raise ValueError(
            f"--reward_funcs {spec}: a {type(cls).__name__}; expected a function f(completions, ...), or a class "
            "whose objects are called like one"
        )
    try:
        made = cls()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{raised_at(error)}: {type(error).__name__}: {one_line(error)} (while making --reward_funcs {spec} "
            "without arguments; make the object yourself, and name that)"
        ) from error
    return made


def _parameters(reward: Reward) -> Collection[Parameter]:
    return inspect.signature(reward.fn).parameters.values()
