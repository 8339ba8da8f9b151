"""The contract of an environment: what its class may have, and how it is called.

reset(**columns)      → None, a text, or messages that are added to the prompt
step(message)         → answers the model's text, if it is annotated `-> Observation`; otherwise it is a tool
other public methods  → tools
get_reward()          → the episode's reward
close()               → called when the episode ends
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.imports import load_object
from ..common.noise import keyed_hash
from ..common.text import did_you_mean
from ..types import EpisodeFailed, Messages
from .tools import Tool, by_name, make_tool

OWN = ("reset", "step", "get_reward", "close")
GIVEN = ("seed", "generation")  # what `reset` gets beside the row's columns, where it names them


@dataclass(frozen=True)
class Observation:
    """What an environment says to a turn of the model. Example: `Observation("higher", reward=0.0, done=False)`"""

    content: str | Messages  # a text becomes a user's message
    reward: float = 0.0  # summed over the episode's steps
    done: bool = False  # whether the episode ends here


class EnvironmentFailed(EpisodeFailed):
    """An environment raised, or broke its contract. The message names its class and the row."""


@dataclass(frozen=True)
class EnvironmentKind:
    """Describes an environment: a class (see `inspect_environment`), or a server (see `openenv_environment`)."""

    name: str
    make: Callable[[], Any]
    bind: Callable[[Any], Sequence[Tool]]  # instance → its tools
    has_steps: bool  # its `step` answers the model's text
    has_reward: bool
    takes: tuple[str, ...]  # the named parameters of `reset`
    takes_all: bool  # whether `reset` takes every column
    needs: tuple[str, ...]  # the parameters of `reset` without a default
    schemas: list[dict[str, Any]]  # the JSON schemas of its tools, as the chat template gets them

    def tools_of(self, instance: Any) -> dict[str, Tool]:
        """Returns the tools of one instance."""
        return by_name(self.bind(instance), self.name)

    def arguments(self, columns: Mapping[str, Any], seed: int, generation: int) -> dict[str, Any]:
        """Returns what `reset` is called with: the row's columns, and seed and generation where it names them."""
        given = {**columns, "seed": seed, "generation": generation}
        return {
            name: given[name] for name in given if name in self.takes or (self.takes_all and name in columns)
        }

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises ValueError where `reset` needs a column that the rows lack."""
        for name in self.needs:
            if name not in columns and name not in GIVEN:
                raise ValueError(
                    f"--environment {self.name}: reset needs `{name}`{did_you_mean(name, columns)}, and the dataset has "
                    f"{', '.join(columns) or 'no columns'}"
                )


def inspect_environment(factory: Callable[[], Any], where: str = "environment_factory") -> EnvironmentKind:
    """Inspects an environment class: its tools, its `step`, its reward and the parameters of `reset`.

    Args:
        factory: the class, or a function that makes an instance without arguments.
        where: the option or argument that named the class, for messages.

    Returns:
        The description of the class.

    Raises:
        ValueError: it is not callable, or has neither tools nor a `step` that is annotated `-> Observation`.
    """
    if not callable(factory):
        raise ValueError(f"{where}: {factory!r} is no class")
    name = getattr(factory, "__name__", type(factory).__name__)
    if isinstance(factory, type):
        cls = factory
    else:
        probe = factory()
        cls, name = type(probe), type(probe).__name__
        close = getattr(probe, "close", None)
        if close is not None:
            close()
    methods = {n: m for n, m in inspect.getmembers(cls, inspect.isroutine) if not n.startswith("_")}
    has_steps = "step" in methods and _returns_observation(methods["step"])
    tools = tuple(n for n in methods if n not in OWN or (n == "step" and not has_steps))
    if not tools and not has_steps:
        raise ValueError(
            f"{where}: {name} has neither tools (public methods) nor a step that is annotated `-> Observation`; see "
            "docs/en/environments.md"
        )
    try:
        bound = [make_tool(_bound(cls, tool), f"{where}: {name}") for tool in tools]
    except ValueError as error:
        if "step" in tools:
            raise ValueError(
                f"{error}; if `step` answers the model's text, annotate it: `def step(self, message) -> Observation`"
            ) from error
        raise ValueError(f"{error}; a method that is no tool has a name that begins with _") from error
    takes, needs, takes_all = _parameters(methods.get("reset"))
    schemas = [dict(tool.schema) for tool in bound]
    bind = functools.partial(_method_tools, tools, name)
    return EnvironmentKind(
        name, factory, bind, has_steps, "get_reward" in methods, takes, takes_all, needs, schemas
    )


def _method_tools(names: Sequence[str], where: str, instance: Any) -> list[Tool]:
    return [make_tool(getattr(instance, name), where) for name in names]


def _bound(cls: type, name: str) -> Callable[..., Any]:
    """Returns a method of a class as an instance has it, without making one."""
    found = getattr(cls, name)
    is_free = isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)
    return found if is_free else types.MethodType(found, object())


def _returns_observation(method: Any) -> bool:
    try:
        said = typing.get_type_hints(method).get("return")
    except Exception:  # noqa: BLE001 - a name that can't be resolved
        said = getattr(method, "__annotations__", {}).get("return")
    return said is Observation or getattr(said, "__name__", said) == "Observation"


def _parameters(reset: Any) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Returns the names that `reset` takes, those that it needs, and whether it takes every column."""
    if reset is None:
        return (), (), False
    parameters = list(inspect.signature(reset).parameters.values())[1:]  # without self
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return tuple(p.name for p in named), tuple(p.name for p in named if p.default is p.empty), takes_all


def load_environments(names: Sequence[str]) -> dict[str, EnvironmentKind]:
    """Loads `--environment [name=]file.py:Class|openenv:URL ...`: by the name that a row's column `environment` has.

    A single one without a name has the name "".

    Raises:
        ValueError: one can't be loaded, or several have no names or the same.
    """
    found: dict[str, EnvironmentKind] = {}
    for spec in names:
        key, equals, place = spec.partition("=")
        if not equals or spec.startswith("openenv:"):  # a URL may have an equals sign
            key, place = "", spec
        if key in found or (len(names) > 1 and not key):
            raise ValueError(
                f"--environment {spec}: several environments need a name each: --environment calc=calc.py:Calculator "
                "game=game.py:Game"
            )
        found[key] = _load_environment(place, f"--environment {spec}")
    return found


def _load_environment(place: str, where: str) -> EnvironmentKind:
    if place.startswith("openenv:"):
        from .openenv import PREFIX, openenv_environment

        return openenv_environment(place.removeprefix(PREFIX))
    if place.startswith(("http://", "https://")):
        raise ValueError(f"{where}: an OpenEnv server is named openenv:{place}")
    return inspect_environment(load_object(place, "--environment"), where)


def kind_of(kinds: Mapping[str, EnvironmentKind], columns: Mapping[str, Any]) -> EnvironmentKind | None:
    """Returns the environment of a row: the only one, or that which its column `environment` names; None without one."""
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    return kinds.get(str(columns.get("environment")))


def episode_seed(seed: int, position: int) -> int:
    """Returns the seed that `reset` gets: the same for all members of a group, another for each prompt and run."""
    import torch

    return int(keyed_hash(seed, torch.tensor([position]))[0]) % 2**31


def with_first(content: str | Messages, first: Any, where: str) -> Messages:
    """Adds what `reset` returned to a prompt: a text to the last user's message, messages behind the others.

    Raises:
        EnvironmentFailed: it is neither None, a text, nor messages.

    Example:
        >>> with_first([{"role": "user", "content": "Guess."}], " From 1 to 9.", "reset")
        [{'role': 'user', 'content': 'Guess. From 1 to 9.'}]
    """
    messages = copy.deepcopy(content) if isinstance(content, list) else []
    if isinstance(content, str) and content:
        messages = [{"role": "user", "content": content}]
    if first is None:
        return messages
    if isinstance(first, str):
        if messages and messages[-1]["role"] == "user" and isinstance(messages[-1].get("content"), str):
            messages[-1]["content"] += first
            return messages
        return [*messages, {"role": "user", "content": first.lstrip(" ")}]
    if isinstance(first, list) and all(isinstance(m, dict) and "role" in m for m in first):
        return messages + copy.deepcopy(first)
    raise EnvironmentFailed(f"{where}: returned {type(first).__name__}; expected None, a text or messages")
