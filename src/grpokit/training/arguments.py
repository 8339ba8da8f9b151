"""Turns the arguments of the Python API into a configuration, and the objects that no configuration can hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..common.imports import load_object
from ..common.text import FROM_PYTHON
from ..config.checks import check_model_config
from ..config.options import EvalConfig, ModelConfig, TrainConfig
from ..config.paths import expand_home
from ..config.yaml import with_options
from ..data.memory import check_rows, describe_rows, is_listed, names_sets
from ..policy.peft_config import options_of_peft
from .callbacks import check_callbacks
from .setup.parts import Parts, check_sampler, find_estimator, find_filter, find_order

Config = TypeVar("Config", bound=ModelConfig)

# Flags whose Python argument has another name.
ARGUMENTS = {"dataset": "train_dataset", "optim": "optimizer"}


@contextmanager
def argument_errors(names: Mapping[str, str] = ARGUMENTS) -> Iterator[None]:
    """Names arguments in place of flags in the errors that users can fix: `--beta -1: ...` becomes `beta -1: ...`.

    `names` are those that differ from the flag's.
    """
    try:
        yield
    except ValueError as error:
        text = name_arguments(str(error), names)
        if text == str(error) or len(error.args) != 1:
            raise
        error.args = (text,)
        raise


def name_arguments(text: str, names: Mapping[str, str] = ARGUMENTS) -> str:
    """A message with the names of arguments in the place of flags.

    Example:
        >>> name_arguments("--dataset (missing): is required; see --help")
        'train_dataset (missing): is required; see help(TrainConfig)'
    """
    text = re.sub(r"--no_(\w+):", r"\1 False:", text.replace("see --help", "see help(TrainConfig)"))
    return re.sub(r"(?<![\w-])--([a-z][a-z0-9_]*)", lambda match: names.get(match[1], match[1]), text)


def gather_arguments(
    args: TrainConfig | Mapping[str, Any], given: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[TrainConfig, Parts]:
    """Gathers the arguments of `GRPOTrainer`; loads nothing.

    Args:
        args: the configuration to begin with, or options by name.
        given: the arguments of `GRPOTrainer` that may be objects, by name; None where one was left out.
        options: options of TrainConfig by name.

    Returns:
        The configuration, in which an object has a name such as `python:accuracy`; and the objects.

    Raises:
        ValueError: an argument of the wrong kind, or an unknown option.
    """
    args = _take_config(args)
    if "dataset" in options:
        raise ValueError("dataset: from Python this argument is called train_dataset")
    for name, here in {"tokenizer": "processing_class", "eval_datasets": "eval_dataset"}.items():
        if name in options:
            raise ValueError(f"{name}: this argument is called {here}")
    if isinstance(options.get("resume_from_checkpoint"), bool | Path):
        resume = options["resume_from_checkpoint"]
        options = {**options, "resume_from_checkpoint": "auto" if resume is True else str(resume or "")}
    eval_rewards = options.get("eval_reward_funcs")
    config = with_options(
        args, {name: value for name, value in options.items() if name != "eval_reward_funcs"}
    )
    config, model = _take_model(config, given["model"], given["processing_class"])
    config, functions = _take_rewards(config, given["reward_funcs"])
    config, functions = _take_eval_rewards(config, eval_rewards, functions)
    config, rows = _take_rows(config, "dataset", "train_dataset", given["train_dataset"])
    if rows is not None and not is_listed(rows) and options.get("shuffle"):
        raise ValueError(
            "shuffle True: an iterable is taken in the order in which it gives its rows; shuffle it yourself, or pass a list"
        )
    config, held_out = _take_rows(config, "eval_dataset", "eval_dataset", given["eval_dataset"])
    if given["peft_config"] is not None:
        config = dataclasses.replace(config, **options_of_peft(given["peft_config"]))
    check_callbacks(given["callbacks"])
    config, sampler = _take_object(config, "sampler", given["sampler"])
    config, estimator = _take_object(config, "advantage_estimator", given["advantage_estimator"])
    config, group_filter = _take_object(config, "group_filter", given["group_filter"])
    config, optimizer = _take_object(config, "optim", given["optimizer"])
    config, order = _take_object(config, "sampler_order", given["sampler_order"])
    config, tools = _take_tools(config, given["tools"])
    config = _take_environments(config, given["environment_factory"])
    config = expand_home(config)
    parts = Parts(
        model=model,
        tokenizer=given["processing_class"],
        train_dataset=rows,
        eval_dataset=held_out,
        reward_funcs=functions,
        sampler=None if sampler is None else check_sampler(sampler),
        advantage_estimator=estimator,
        group_filter=group_filter,
        sampler_order=order,
        optimizer=optimizer,
        callbacks=tuple(given["callbacks"]),
        tools=tools,
        environment_factory=given["environment_factory"],
    )
    find_estimator(config, parts)  # raises where it can't be called as it must be
    find_filter(config, parts)
    find_order(config, parts)
    if optimizer is not None and not callable(optimizer) and model is None:
        raise ValueError(
            "optimizer: an optimizer that is made already needs a loaded model, whose parameters it has; pass a function "
            "f(named_parameters, learning_rate) that makes it"
        )
    return config, parts


def _take_config(args: TrainConfig | Mapping[str, Any]) -> TrainConfig:
    """Takes the configuration to begin with, which may be a dict of its options."""
    if isinstance(args, Mapping):
        return with_options(TrainConfig(), args, "args: ")
    if not isinstance(args, TrainConfig):
        raise ValueError(
            f"args: a {type(args).__name__}; expected a grpokit.TrainConfig, or a dict of its options (docs/en/migrating.md)"
        )
    return args


def gather_evaluation(
    model: Any, reward_funcs: Any, dataset: Any, processing_class: Any, options: Mapping[str, Any]
) -> tuple[EvalConfig, Parts]:
    """Gathers the arguments of `grpokit.evaluate`, and checks them. Returns what `gather_arguments` returns.

    Args:
        model: as `GRPOTrainer` takes it.
        reward_funcs: likewise.
        dataset: likewise, as `train_dataset`.
        processing_class: the tokenizer of a loaded model.
        options: options of EvalConfig by name.

    Returns:
        The configuration and the objects.
    """
    config = with_options(EvalConfig(), options)
    if isinstance(model, list | tuple):
        if not model or not all(isinstance(one, str | Path) for one in model):
            raise ValueError("model: expected a directory, org/name of the Hub, or a list of them to compare")
        config, model = dataclasses.replace(config, models=tuple(map(str, model))), None
    config, loaded = _take_model(config, model, processing_class)
    config, functions = _take_rewards(config, reward_funcs)
    config, rows = _take_rows(config, "dataset", "dataset", dataset, evaluates=True)
    config = expand_home(config)
    if not config.models:  # each of several is checked before any is loaded
        check_model_config(config, from_python=True)
    return config, Parts(model=loaded, tokenizer=processing_class, train_dataset=rows, reward_funcs=functions)


def _take_model(config: Config, model: Any, tokenizer: Any) -> tuple[Config, Any]:
    if model is None or isinstance(model, str | Path):
        if tokenizer is not None:
            raise ValueError(
                "processing_class: is the tokenizer of a loaded model; a directory has its own, so leave it out"
            )
        return (config if model is None else dataclasses.replace(config, model=str(model))), None
    for attribute in ("config", "generate", "named_parameters"):
        if not hasattr(model, attribute):
            raise ValueError(
                f"model: a {type(model).__name__}; expected a directory, org/name of the Hub, or a loaded PreTrainedModel"
            )
    if hasattr(model, "peft_config"):
        raise ValueError(
            "model: has an adapter already; pass the model without it and peft_config=, or merge it first "
            "(model.merge_and_unload())"
        )
    if tokenizer is None:
        raise ValueError("processing_class (missing): a loaded model needs its tokenizer here")
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise ValueError(
            f"processing_class: a {type(tokenizer).__name__}; expected a tokenizer of transformers"
        )
    for option, reason in (
        ("attn_implementation", "choose it when you load the model"),
        ("load_in_4bit", "pass the directory, so that it is loaded in 4 bits"),
    ):
        if getattr(config, option, None):
            raise ValueError(f"{option} {getattr(config, option)}: the model is loaded already; {reason}")
    if getattr(config, "vllm_mode", "") == "colocate":
        raise ValueError("vllm_mode colocate: needs a model's directory, and this model is loaded already")
    name = f"{FROM_PYTHON}{model.config._name_or_path or type(model).__name__}"
    return dataclasses.replace(config, model=name), model


def _take_rows(
    config: Config, option: str, argument: str, rows: Any, evaluates: bool = False
) -> tuple[Config, Any]:
    """Takes rows, or paths of datasets. Returns the configuration, in which they have a name, and the rows.

    Args:
        config: the configuration.
        option: the option that names them.
        argument: the argument that they are, for messages.
        rows: the argument.
        evaluates: whether several sets by name are taken for --dataset too.
    """
    if rows is None:
        return config, None
    if isinstance(rows, str | Path):
        return dataclasses.replace(config, **{option: str(rows)}), None
    if isinstance(rows, dict) and (option == "eval_dataset" or (evaluates and names_sets(rows))):
        for name, each in rows.items():
            if not str(name).isidentifier():
                raise ValueError(
                    f"{argument}: the set {name!r} needs a name of letters, digits and _, as metrics have it"
                )
            if not isinstance(each, str | Path):
                check_rows(each, f"{argument}[{name!r}]")
        values = {n: e if isinstance(e, str | Path) else describe_rows(e) for n, e in rows.items()}
        named = tuple(f"{name}={value}" for name, value in values.items())
        return dataclasses.replace(config, **{option: named}), rows
    are_paths = isinstance(rows, list | tuple) and all(isinstance(item, str | Path) for item in rows)
    if rows and are_paths:  # several datasets
        return dataclasses.replace(config, **{option: tuple(map(str, rows))}), None
    check_rows(rows, argument)
    return dataclasses.replace(config, **{option: describe_rows(rows)}), rows


def _take_tools(config: TrainConfig, tools: Any) -> tuple[TrainConfig, tuple[Any, ...]]:
    """Parts tools into names, which join the configuration, and functions."""
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools: a {type(tools).__name__}; expected a list of functions: tools=[add]")
    functions = tuple(tool for tool in tools if not isinstance(tool, str))
    names = tuple(tool if isinstance(tool, str) else _name_of(tool, "tool") for tool in tools)
    names = tuple(
        n if isinstance(t, str) else FROM_PYTHON + n.rpartition(":")[2]
        for n, t in zip(names, tools, strict=True)
    )
    return (dataclasses.replace(config, tools=names) if names else config), functions


def _take_environments(config: TrainConfig, factory: Any) -> TrainConfig:
    """Names the environments that were given as objects, so that config.yaml tells of them."""
    if factory is None:
        return config
    many = factory if isinstance(factory, dict) else {"": factory}
    names = {key: getattr(one, "__name__", type(one).__name__) for key, one in many.items()}
    return dataclasses.replace(
        config, environment=tuple(f"{FROM_PYTHON}{key and key + '='}{name}" for key, name in names.items())
    )


def _take_rewards(config: Config, rewards: Any) -> tuple[Config, dict[str, Callable[..., Any]]]:
    if rewards is None:
        return config, {}
    names, functions = _name_rewards(rewards, "reward_funcs", {})
    return dataclasses.replace(config, reward_funcs=names), functions


def _take_eval_rewards(
    config: TrainConfig, rewards: Any, functions: Mapping[str, Callable[..., Any]]
) -> tuple[TrainConfig, dict[str, Callable[..., Any]]]:
    """Takes the rewards of evaluation: a reward, a list of them, or either by the set's name.

    Args:
        config: the configuration.
        rewards: the argument; None: the configuration's own.
        functions: the rewards of training, by name.

    Returns:
        The configuration with their names, and all functions by name.
    """
    if rewards is None:
        return config, dict(functions)
    found, values = dict(functions), list[str]()
    for name, several in rewards.items() if isinstance(rewards, Mapping) else [("", rewards)]:
        names, own = _name_rewards(several, "eval_reward_funcs", found)
        found |= own
        values += [f"{name}={each}" if name else each for each in names]
    return dataclasses.replace(config, eval_reward_funcs=tuple(values)), found


def _name_rewards(
    rewards: Any, argument: str, known: Mapping[str, Callable[..., Any]]
) -> tuple[tuple[str, ...], dict[str, Callable[..., Any]]]:
    """Names rewards. Returns their names, and by name those that are functions.

    Args:
        rewards: a reward, or a list of them: functions and names.
        argument: the argument that they are, for messages.
        known: functions that have names already; one of another object is not given twice.
    """
    listed = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
    names: list[str] = []
    functions: dict[str, Callable[..., Any]] = {}
    for reward in listed:
        if isinstance(reward, str | Path):
            names.append(str(reward))
            continue
        if not callable(reward):
            raise ValueError(
                f"{argument}: a {type(reward).__name__}; expected a function f(completions, **columns), the name of a "
                'built-in reward, "file.py:function", or a reward model\'s directory'
            )
        name, taken = _name_of(reward, "reward"), {**known, **functions}
        if known.get(name) is not reward:
            if name in taken and name.rpartition(":")[2] == "reward":  # several lambdas
                name = next(f"{name}_{i}" for i in range(2, 99) if f"{name}_{i}" not in taken)
            if name in taken:
                raise ValueError(
                    f"{argument}: two functions are called {reward.__name__}; metrics need a name for each, so rename one"
                )
        functions[name] = reward
        names.append(name)
    return tuple(names), functions


def _take_object(config: TrainConfig, option: str, value: Any) -> tuple[TrainConfig, Any]:
    """An option that takes a name or an object: its configuration, and the object."""
    if value is None:
        return config, None
    if isinstance(value, str):
        return dataclasses.replace(config, **{option: value}), None
    return dataclasses.replace(config, **{option: _name_of(value, option)}), value


def _name_of(thing: Any, otherwise: str) -> str:
    """A name for config.yaml: `package.module:name` where an import finds the same object, else `python:name`."""
    name = getattr(thing, "__name__", type(thing).__name__)
    if name == "<lambda>":
        return FROM_PYTHON + otherwise
    module = getattr(thing, "__module__", None) or "__main__"
    if module != "__main__" and not module.startswith("grpokit_user_"):
        try:
            if load_object(f"{module}:{name}", "--name") is thing:
                return f"{module}:{name}"
        except ValueError:  # a function within a function, or a module that can't be imported by its name
            pass
    return FROM_PYTHON + name
