"""Checks of a configuration that need neither torch nor the model. Each error names the flag, the value and the fix."""

from __future__ import annotations

from pathlib import Path

from ..data.names import split_name
from .data_rules import DATASET_RULES, ORDER_RULES, check_datasets
from .options import ModelConfig, TrainConfig
from .reward_rules import REWARD_RULES, parse_routes
from .rules import Rule, at_least, has_model, is_adapter, is_given
from .sampling_rules import sampling_rules
from .schedule import check_schedule
from .train_rules import TRAIN_RULES
from .unused import UNUSED_MODEL_OPTIONS, UNUSED_TRAIN_OPTIONS

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
    *DATASET_RULES,
    Rule(
        "chat_template",
        lambda c: c.chat_template == "" or Path(c.chat_template).is_file(),
        "no such file; name one with a chat template in Jinja",
    ),
    *REWARD_RULES,
    *at_least(1, "max_turns environment_workers"),
    *at_least(0, "max_turn_length tool_timeout max_tool_output max_environment_errors turn_cache_gib"),
    *sampling_rules(),
    *at_least(1, "rollout_batch_size"),
    Rule(
        "max_prompt_length",
        lambda c: c.max_prompt_length is None or c.max_prompt_length >= 1,
        "must be at least 1",
    ),
    *at_least(0, "max_samples num_threads"),
]

# Options whose value may be an object that was given from Python.
OBJECTS = (*("model", "sampler", "advantage_estimator", "group_filter", "optim", "sampler_order"),)
LISTS = ("dataset", "eval_dataset", "reward_funcs", "eval_reward_funcs")  # likewise, for each of their values


def check_model_config(config: ModelConfig, from_python: bool = False) -> None:
    """Raises ValueError naming the first option that cannot work.

    `from_python`: objects were passed for the options whose value begins with `python:`. Otherwise a `python:` value
    raises: only the script that passed the object can start that run.
    """
    values = [(flag, getattr(config, flag, "")) for flag in OBJECTS]
    values += [(flag, split_name(value)[1]) for flag in LISTS for value in getattr(config, flag, ())]
    for flag, value in values:
        if is_given(value) and not from_python:
            raise ValueError(
                f"--{flag} {value}: was given from Python as an object, so that only the same script can give it again; "
                "name a file, or resume from Python"
            )
    for rule in MODEL_RULES:
        if rule.flag != "model" or not config.model or not resumes_without_model(config, from_python):
            rule.check(config)
    if config.reward_routes:
        parse_routes(config.reward_routes)
    check_datasets(config.dataset, trains=isinstance(config, TrainConfig))
    for rule in UNUSED_MODEL_OPTIONS:
        rule.check(config)


def resumes_without_model(config: ModelConfig, from_python: bool = False) -> bool:
    """Tells whether a run goes on from a checkpoint that has all it needs of the model, so that --model isn't read.

    An adapter, a reference and an engine in this process begin from --model itself. From Python, `train` says later whether
    it resumes.
    """
    if not isinstance(config, TrainConfig) or not (config.resume_from_checkpoint or from_python):
        return False
    needs_model = (
        config.lora_r > 0 or (config.beta > 0 and not config.ref_model) or config.vllm_mode == "colocate"
    )
    auto = config.resume_from_checkpoint in ("", "auto")
    found = Path(config.output_dir).glob("checkpoint-*") if auto else [Path(config.resume_from_checkpoint)]
    return not needs_model and any((path / "config.json").is_file() for path in found)


def check_train_config(config: TrainConfig, from_python: bool = False) -> None:
    """Raises ValueError naming the first option that cannot work; see `check_model_config`."""
    check_model_config(config, from_python)
    check_datasets(config.eval_dataset, trains=False, flag="--eval_dataset")
    for rule in (*TRAIN_RULES, *ORDER_RULES):
        rule.check(config)
    check_schedule(config)
    for rule in UNUSED_TRAIN_OPTIONS:
        rule.check(config)
