"""Checks of a configuration that need neither torch nor the model. Each error names the flag, the value and the fix."""

from __future__ import annotations

from pathlib import Path

from .options import ModelConfig, TrainConfig
from .rules import Rule, at_least, has_data, has_model, is_adapter, is_given
from .train_rules import TRAIN_RULES

MODEL_RULES = [
    Rule("model", lambda c: c.model != "", "is required; see --help", "(missing)"),
    Rule(
        "model",
        lambda c: has_model(c.model) or Path(c.model).exists(),
        "no such file or directory, and not org/name of the Hub",
    ),
    Rule(
        "model",
        lambda c: has_model(c.model) or Path(c.model).is_dir(),
        "must be a directory with a config.json",
    ),
    Rule(
        "model",
        lambda c: has_model(c.model) or not (Path(c.model) / "final" / "config.json").is_file(),
        "is a run's directory; its trained model is {c.model}/final",
    ),
    Rule("model", lambda c: has_model(c.model) or is_adapter(c.model), "has no config.json"),
    Rule("dataset", lambda c: c.dataset != "", "is required; see --help", "(missing)"),
    Rule("dataset", lambda c: has_data(c.dataset), "no such file or directory"),
    Rule(
        "reward_funcs", lambda c: len(c.reward_funcs) > 0, "at least one is required; see --help", "(missing)"
    ),
    Rule(
        "reward_weights",
        lambda c: len(c.reward_weights) in (0, len(c.reward_funcs)),
        "needs one weight for each of the reward functions: {c.reward_funcs}",
    ),
    *at_least(1, "max_completion_length"),
    Rule(
        "min_completion_length",
        lambda c: 0 <= c.min_completion_length <= c.max_completion_length,
        "must be between 0 and max_completion_length, {c.max_completion_length}",
    ),
    Rule("stop", lambda c: "" not in c.stop, "is in every completion; name a string, or leave it out", "''"),
    Rule("temperature", lambda c: c.temperature > 0, "must be above 0 (evaluation adds greedy)"),
    *at_least(1, "rollout_batch_size"),
    Rule(
        "max_prompt_length",
        lambda c: c.max_prompt_length is None or c.max_prompt_length >= 1,
        "must be at least 1",
    ),
    *at_least(0, "max_samples reward_timeout num_threads"),
]

# Options whose value may be an object that was given from Python.
OBJECTS = ("model", "dataset", "eval_dataset", "sampler", "advantage_estimator", "group_filter", "optim")


def check_model_config(config: ModelConfig, from_python: bool = False) -> None:
    """Raises ValueError naming the first option that cannot work.

    `from_python`: objects were passed for the options whose value begins with `python:`. Otherwise a `python:` value
    raises: only the script that passed the object can start that run.
    """
    values = [(flag, getattr(config, flag, "")) for flag in OBJECTS]
    for flag, value in [*values, *(("reward_funcs", name) for name in config.reward_funcs)]:
        if is_given(value) and not from_python:
            raise ValueError(
                f"--{flag} {value}: was given from Python as an object, so that only the same script can give it again; "
                "name a file, or resume from Python"
            )
    for rule in MODEL_RULES:
        rule.check(config)


def check_train_config(config: TrainConfig, from_python: bool = False) -> None:
    """Raises ValueError naming the first option that cannot work; see `check_model_config`."""
    check_model_config(config, from_python)
    for rule in TRAIN_RULES:
        rule.check(config)
