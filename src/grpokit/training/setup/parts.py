"""The parts of a run that are objects: given from Python, or named by `file.py:name` on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...batch.advantages import ESTIMATORS, Estimator
from ...common.imports import load_object, raised_in
from ...common.text import FROM_PYTHON, did_you_mean, one_line
from ...config.options import TrainConfig
from ...data.ordered import SamplerOrder
from ...data.prompts import own_prompt
from ...policy.optimizer import MakeOptimizer
from ...rollouts import Sampler
from ...rollouts.resample import GroupFilter
from ...types import RolloutGroup

SamplerFactory = Callable[..., Sampler]
"""Makes a sampler of one's own: called with `policy`, `tokenizer`, `config` and `seed`, by those names that it asks for.

It is called twice, for training and for evaluation, whose noise has another seed.
"""


@dataclass(frozen=True)
class Parts:
    """Objects in the place of names. Every field that is None is made from the configuration.

    Example:
        >>> Parts(reward_funcs={"python:short": lambda completions: [-len(c) for c in completions]}).model is None
        True
    """

    model: Any = None  # a loaded PreTrainedModel
    tokenizer: Any = None  # its tokenizer
    train_dataset: Any = None  # rows in memory, or an iterable of rows
    eval_dataset: Any = None
    reward_funcs: Mapping[str, Callable[..., Any]] = field(
        default_factory=dict
    )  # by the name in the configuration
    sampler: Sampler | SamplerFactory | None = None
    advantage_estimator: Estimator | None = None
    group_filter: GroupFilter | None = None
    sampler_order: Any = None  # an object with take(step, count), or what makes one
    optimizer: MakeOptimizer | torch.optim.Optimizer | None = None
    callbacks: tuple[Any, ...] = ()
    tools: tuple[Any, ...] = ()  # functions that the model may call
    environment_factory: Any = None  # a class of environments, or classes by name


def find_sampler(config: TrainConfig, parts: Parts) -> Sampler | SamplerFactory | None:
    """The user's own sampler, checked; None where --sampler names an engine of grpokit's."""
    own = parts.sampler
    if own is None and is_own(config.sampler):
        own = load_object(config.sampler, "--sampler")
    return own if own is None else check_sampler(own)


def check_sampler(sampler: Any) -> Any:
    """Raises ValueError unless it is a Sampler (`sample` and `sync`), or a function that makes one."""
    if isinstance(sampler, type) or not hasattr(sampler, "sample"):
        if callable(sampler):
            return sampler
        raise ValueError(
            f"--sampler: a {type(sampler).__name__}; expected an object with sample(prompts, num_generations, *, greedy) "
            "and sync(), or a function that makes one"
        )
    for method in ("sample", "sync"):
        if not callable(getattr(sampler, method, None)):
            raise ValueError(
                f"--sampler: {type(sampler).__name__} has no method {method}(); expected sample(prompts, num_generations, "
                "*, greedy) and sync()"
            )
    return sampler


def call_factory(factory: SamplerFactory, **known: Any) -> Sampler:
    """Makes a sampler by a function of the user's, which is given what it asks for by name."""
    parameters = inspect.signature(factory).parameters.values()
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    wanted = {p.name for p in parameters}
    unknown = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in known
    ]
    if unknown:
        raise ValueError(
            f"--sampler: the function asks for {unknown[0]!r}{did_you_mean(unknown[0], known)}; there are "
            f"{', '.join(known)}"
        )
    made = factory(**{name: value for name, value in known.items() if takes_all or name in wanted})
    if not (callable(getattr(made, "sample", None)) and callable(getattr(made, "sync", None))):
        raise ValueError(
            f"--sampler: the function returned a {type(made).__name__}; expected an object with sample(prompts, "
            "num_generations, *, greedy) and sync()"
        )
    return made


def find_estimator(config: TrainConfig, parts: Parts) -> str | Estimator:
    """The name of an advantage estimator, or the user's own function, checked."""
    own = parts.advantage_estimator
    if own is None and is_own(config.advantage_estimator):
        own = load_object(config.advantage_estimator, "--advantage_estimator")
    if own is None:
        return config.advantage_estimator
    if isinstance(own, str) and own in ESTIMATORS:
        return own
    check_function(own, "--advantage_estimator", "f(rewards) or f(rewards, rollouts)", 2)
    return own


def find_filter(config: TrainConfig, parts: Parts) -> GroupFilter | None:
    """The user's own group filter, checked; None without one."""
    own = parts.group_filter
    if own is None and is_own(config.group_filter):
        own = load_object(config.group_filter, "--group_filter")
    if own is not None:
        check_function(own, "--group_filter", "f(group) that returns True or False", 1)
        return _NamedFilter(own)
    return own


def find_order(config: TrainConfig, parts: Parts) -> Callable[[int, int], SamplerOrder] | None:
    """What makes the order of --sampler_order from the number of rows and the seed; None without one."""
    own = parts.sampler_order
    if own is None and is_own(config.sampler_order):
        own = load_object(config.sampler_order, "--sampler_order")
    if own is None:
        return None
    if callable(getattr(own, "take", None)) and not isinstance(own, type):
        return lambda rows, seed: own
    if not callable(own):
        raise ValueError(
            f"--sampler_order: a {type(own).__name__}; expected a function f(num_rows, seed) that returns an object with "
            "take(step, count), or such an object"
        )
    return own  # pyright: ignore[reportReturnType]


def own_group(group: RolloutGroup) -> RolloutGroup:
    """Returns the group with copies of its prompt and rewards, so that what a function of the user's edits stays its own."""
    rewards, reward = (None if x is None else x.clone() for x in (group.rewards, group.reward))
    return replace(group, prompt=own_prompt(group.prompt), rewards=rewards, reward=reward)


@dataclass(frozen=True)
class _NamedFilter:
    """A user's filter, whose errors name it and the group."""

    function: GroupFilter

    def __call__(self, group: RolloutGroup) -> bool:
        try:
            return bool(self.function(own_group(group)))
        except Exception as error:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise ValueError(
                f"--group_filter {name}: raised {type(error).__name__}: {one_line(error)} "
                f"({raised_in(error, self.function)}) for the group of {group.prompt.source}"
            ) from error


def check_function(function: Any, flag: str, expected: str, most: int) -> None:
    """Raises ValueError where `function` can't be called with 1 to `most` positional arguments.

    Args:
        function: the object that was given.
        flag: its option, for messages.
        expected: the signature, for messages.
        most: the most positional arguments that it is called with.
    """
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"{flag}: a {type(function).__name__}; expected a function {expected}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature; it shows when it is called
        return
    for count in range(1, most + 1):
        try:
            signature.bind(*[None] * count)
            return
        except TypeError:
            continue
    raise ValueError(f"{flag}: the function takes {signature}; expected {expected}")


def is_own(name: str) -> bool:
    """Tells whether an option's value names an object of the user's: file.py:name or package.module:name."""
    return ":" in name and not name.startswith(FROM_PYTHON)
