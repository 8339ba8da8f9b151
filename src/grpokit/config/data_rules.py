"""The rules of the data: the datasets, their weights, the length in epochs and the order of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from ..data.names import read_names
from .rules import Rule, has_data, is_given

Config = TypeVar("Config")
DEFAULT_STEPS = 100

DATASET_RULES = [
    Rule(
        "dataset",
        lambda c: len(c.dataset) > 0 or len(c.environment) > 0,
        "is required, unless an --environment makes the prompts; see --help",
        "(missing)",
    ),
]


def check_datasets(values: Iterable[str], trains: bool, flag: str = "--dataset") -> None:
    """Raises ValueError for a value of --dataset or --eval_dataset that cannot work.

    Args:
        values: the values of the option.
        trains: whether the datasets are trained on. Only then may they have weights.
        flag: the option.
    """
    values = tuple(values)
    if len(values) == 1 and is_given(values[0]):
        return
    for part in read_names(values, flag):
        if is_given(part.value):
            raise ValueError(f"{flag} {part.value}: rows in memory are one dataset; give files for several")
        if not has_data(part.place):
            raise ValueError(f"{flag} {part.value}: no such file or directory")
        if len(values) == 1 and part.weight not in (None, 1):
            raise ValueError(
                f"{flag} {part.value}: one dataset needs no weight; if {part.weight:g} is a configuration, write "
                f"{part.value}:1"
            )
        if part.weight not in (None, 1) and not trains:
            raise ValueError(f"{flag} {part.value}: evaluation takes every prompt once; leave the weight out")


def with_one_length(config: Config, given: Iterable[str]) -> Config:
    """Lets the run have one length: if --max_steps or --num_train_epochs is given, resets the other to its default.

    Args:
        config: the configuration, for example from a YAML file.
        given: the names of the options that will override it.

    Raises:
        ValueError: both are given.
    """
    lengths = {"max_steps", "num_train_epochs"} & set(given) & vars(config).keys()
    if len(lengths) > 1:
        raise ValueError(
            "--num_train_epochs: --max_steps is given too; leave one of them out (in TRL, max_steps wins)"
        )
    other = {"max_steps": {"num_train_epochs": 0.0}, "num_train_epochs": {"max_steps": DEFAULT_STEPS}}
    return dataclasses.replace(config, **other[lengths.pop()]) if lengths else config  # pyright: ignore


def _has_weights(config: Any) -> bool:
    return any(part.weight is not None for part in read_names(config.dataset))


ORDER_RULES = [
    Rule(
        "num_train_epochs",
        lambda c: not c.num_train_epochs or not c.max_resample_times or c.sampler_order != "",
        "with --max_resample_times {c.max_resample_times} a step reserves prompts that it may not use, so an epoch would miss "
        "rows; use --max_steps, or --sampler_order",
    ),
    Rule(
        "num_train_epochs",
        lambda c: 0 <= c.num_train_epochs < float("inf"),
        "must be above 0, or 0 for --max_steps",
    ),
    Rule(
        "num_train_epochs",
        lambda c: not c.num_train_epochs or c.max_steps == DEFAULT_STEPS,
        "--max_steps {c.max_steps} is given too; leave one of them out (in TRL, max_steps wins)",
    ),
    Rule(
        "num_train_epochs",
        lambda c: not c.num_train_epochs or len(c.dataset) > 0,
        "an environment's tasks have no number, so there is no epoch; use --max_steps",
    ),
    Rule(
        "sampler_order",
        lambda c: not c.sampler_order or ":" in c.sampler_order,
        "expected file.py:function, which returns an object with take(step, count)",
    ),
    Rule(
        "sampler_order",
        lambda c: not c.sampler_order or len(c.dataset) > 0,
        "orders the rows of a dataset, and an environment makes its own tasks; add --dataset",
    ),
    Rule(
        "sampler_order",
        lambda c: not c.sampler_order or not _has_weights(c),
        "chooses the rows of each step, so weights would do nothing; leave the weights of --dataset out",
    ),
]
