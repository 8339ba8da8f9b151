"""Reads the arguments of a command: flags over the file of --config over the defaults."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..common.text import did_you_mean, value_of
from ..config.commands import CompareConfig
from ..config.data_rules import with_one_length
from ..config.flags import FLAG, check_flags, given_flags
from ..config.hints import hint
from ..config.mappings import with_json_read
from ..config.options import EvalConfig, TrainConfig
from ..config.training_file import for_eval, is_of_training, trained_model, without_unused
from ..config.yaml import read_yaml, with_options

WITH_FILE = ("train", "eval", "plan")  # the commands that take --config


def read_arguments(
    cls: type, command: str, words: Sequence[str], parse: Callable[..., Any]
) -> tuple[Any, str]:
    """Reads the words behind a command.

    Args:
        cls: the command's configuration.
        command: its name.
        words: the words.
        parse: makes the configuration of the words; `default=` is the one that has the values of the file.

    Returns:
        The configuration, and what there is to say about its file; "" for nothing.

    Raises:
        ValueError: a flag or an option of the file that the command doesn't have, or a value that it can't take.
    """
    if cls is CompareConfig:
        own, training = split_flags(words)
        seeds = value_of("--seeds", own)
        if seeds and not seeds.lstrip("-").isdecimal():
            raise ValueError(
                f"--seeds {seeds}: expected how many seeds each variant gets, such as 5; --seed is the first one"
            )
        return dataclasses.replace(parse(args=own), training=tuple(training)), ""
    if command not in WITH_FILE:
        return with_json_read(parse()), ""
    check_flags(words, cls, command)
    given = given_flags(words)
    path = os.path.expanduser(value_of("--config", words))
    values = read_yaml(path) if path else {}
    of_training, said = cls is EvalConfig and is_of_training(values), ""
    if of_training:
        try:
            values, summary = for_eval(values, given)
        except ValueError as error:
            raise ValueError(f"--config {path}: {error}") from error
        said = f"--config {path}: {summary}"
        trained = trained_model(path)
        if trained and not {"model", "models"} & set(given):
            said += (
                f"; evaluates the model that the run began with: for what it trained, add --model {trained}"
            )
    default = with_options(cls(), values, f"--config {path}: ")
    default = dataclasses.replace(default, config=path) if path else default
    config = with_json_read(parse(default=with_one_length(default, given)))
    return (without_unused(config, given) if of_training else config), said


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the words behind `grpokit compare` into its own and those of `grpokit train`, which all variants get.

    Raises:
        ValueError: neither has an option of that name.

    Example:
        >>> split_flags(["--seeds", "3", "--learning_rate", "1e-4", "--jobs=2"])
        (['--seeds', '3', '--jobs=2'], ['--learning_rate', '1e-4'])
    """
    compares = {field.name for field in dataclasses.fields(CompareConfig)} - {"training"}
    trains = {field.name for field in dataclasses.fields(TrainConfig)}
    parts: tuple[list[str], list[str]] = [], []
    at = 0
    for word in words:
        if found := FLAG.fullmatch(word):
            name = found[1].replace("-", "_")
            if name not in compares | trains | {"help"} and name.removeprefix("no_") not in trains:
                foreign = hint(name, TrainConfig)
                near = foreign if "TRL" in foreign else did_you_mean(name, compares | trains)
                raise ValueError(
                    f"--{found[1]}: no such option of grpokit compare or grpokit train{near}; see grpokit compare --help"
                )
            at = int(name not in compares | {"help"})
        parts[at].append(word)
    return parts
