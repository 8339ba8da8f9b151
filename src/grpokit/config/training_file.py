"""A training run's file as the configuration of an evaluation: what applies is taken, the rest is left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..data.names import split_name
from .hints import OF_EVAL, hint
from .judge_options import JudgeOptions
from .model_options import SamplingOptions
from .options import EvalConfig, TrainConfig
from .unused import UNUSED_MODEL_OPTIONS, default_of, has_reward

OF_DATA = ("dataset", "dataset_split", "max_samples")
EVAL = {field.name for field in fields(EvalConfig)}
TRAINING = {field.name for field in fields(TrainConfig)} - EVAL
SHOWN = 6  # options that are named one by one, where no more are left out


def is_of_training(values: Mapping[str, Any]) -> bool:
    """Tells whether a file has options that training alone has."""
    return bool(TRAINING & values.keys())


def for_eval(values: Mapping[str, Any], given: Collection[str]) -> tuple[dict[str, Any], str]:
    """Returns what an evaluation takes from the file of a training run.

    The evaluation's own options go before those of training: eval_dataset is read as dataset, eval_temperature as
    temperature. What belongs to the file's dataset is left out where another is given.

    Args:
        values: the options of the file by name.
        given: the names of the options that the command line has.

    Returns:
        The options of `grpokit eval` by name, and what there is to say about the others.

    Raises:
        ValueError: neither training nor evaluation has an option of that name.
    """
    for name in values.keys() - EVAL - TRAINING:
        raise ValueError(f"unknown option {name!r}{hint(name, TrainConfig)}")
    taken = {name: value for name, value in values.items() if name not in TRAINING}
    renamed: list[str] = []

    def take(name: str, ours: str) -> None:
        if name in values and values[name] not in (None, "", [], ()):
            taken[ours] = values[name]
            renamed.append(name)

    for field in fields(SamplingOptions):
        take(f"eval_{field.name}", field.name)
    take("eval_generations", OF_EVAL["eval_generations"])
    if "dataset" in given:
        taken = {name: value for name, value in taken.items() if name not in OF_DATA}
    elif values.get("eval_dataset"):
        taken = {name: value for name, value in taken.items() if name not in OF_DATA}
        for name in ("eval_dataset", "eval_split", "eval_samples"):
            take(name, OF_EVAL[name])
    if "reward_funcs" in given or _has_one_list(values.get("eval_reward_funcs")):
        for name in ("reward_funcs", "reward_weights", "reward_routes"):
            taken.pop(name, None)
        if "reward_funcs" not in given:
            take("eval_reward_funcs", "reward_funcs")
    if {"model", "models"} & set(given):
        taken.pop("model", None)
    left_out = [name for name in values if name in TRAINING and name not in renamed]
    return taken, _summary(renamed, left_out)


def without_unused(config: EvalConfig, given: Collection[str]) -> EvalConfig:
    """Resets the options of rewards that the evaluation doesn't have, but for those that the command line gives."""
    names = {rule.flag for rule in UNUSED_MODEL_OPTIONS if not rule.holds(config)}
    if not has_reward("judge")(config):
        names |= {field.name for field in fields(JudgeOptions)}
    return replace(config, **{name: default_of(config, name) for name in names - set(given)})


def trained_model(path: str) -> str:
    """Returns the directory of the trained model beside a run's config.yaml; "" where there is none."""
    final = Path(path).parent / "final"
    found = any((final / name).is_file() for name in ("config.json", "adapter_config.json"))
    return str(final) if found else ""


def _has_one_list(rewards: Any) -> bool:
    """Tells whether an evaluation has rewards of its own, the same for all its sets."""
    several = [rewards] if isinstance(rewards, str) else list(rewards or ())
    return bool(several) and not any(split_name(str(each))[0] for each in several)


def _summary(renamed: list[str], left_out: list[str]) -> str:
    shown = ", ".join(left_out) if len(left_out) <= SHOWN else f"{len(left_out)} options of training"
    parts = [f"takes {', '.join(renamed)} for its own"] if renamed else []
    parts += [f"leaves out {shown}"] if left_out else []
    return f"a training run's file; eval {' and '.join(parts)}"
