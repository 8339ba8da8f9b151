"""Checks of a configuration that need neither torch nor the model, as a table. Each names the flag, the value, the mend."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..common.hub import is_hub_model
from ..common.text import FROM_PYTHON
from ..data.sources import is_hub_name
from .options import ModelConfig, TrainConfig


class Rule(NamedTuple):
    """One check. Example: `Rule("beta", lambda c: c.beta >= 0, "must be 0 or more")`"""

    flag: str
    holds: Callable[[Any], bool]
    expected: str  # may name options of the configuration: "{c.beta}"
    shown: str | None = None  # in place of the flag's value

    def check(self, config: Any) -> None:
        """Raises ValueError where it doesn't hold."""
        if not self.holds(config):
            value = getattr(config, self.flag) if self.shown is None else self.shown
            if isinstance(value, tuple):
                value = " ".join(map(str, value))
            raise ValueError(f"--{self.flag} {value}: {self.expected.format(c=config, ranks=ranks())}")


def ranks() -> int:
    """The number of processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def at_least(least: int, flags: str) -> list[Rule]:
    """A rule for each of the flags: its value is at least 0 or 1."""
    expected = "must be at least 1" if least else "must be 0 or more"
    return [Rule(flag, lambda c, flag=flag: getattr(c, flag) >= least, expected) for flag in flags.split()]


def above_0(flags: str) -> list[Rule]:
    """A rule for each of the flags: its value is above 0."""
    return [
        Rule(flag, lambda c, flag=flag: getattr(c, flag) > 0, "must be above 0") for flag in flags.split()
    ]


def is_given(value: str) -> bool:
    """Tells whether a model or a dataset was given as an object."""
    return value.startswith(FROM_PYTHON)


def has_model(value: str) -> bool:
    """Tells whether a value names a model: a directory with a config.json, a model of the Hub, or an object."""
    return is_given(value) or is_hub_model(value) or (Path(value) / "config.json").is_file()


def has_data(value: str) -> bool:
    """Tells whether a value names a dataset: something on disk, of the Hub, or in memory."""
    return is_given(value) or Path(value).exists() or is_hub_name(value)


def is_adapter(value: str) -> bool:
    """Tells whether a model's directory holds an adapter alone."""
    return (Path(value) / "adapter_config.json").is_file() and not (Path(value) / "config.json").is_file()


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
    Rule("model", lambda c: has_model(c.model) or is_adapter(c.model), "has no config.json"),
    Rule("dataset", lambda c: c.dataset != "", "is required; see --help", "(missing)"),
    Rule("dataset", lambda c: has_data(c.dataset), "no such file or directory"),
    Rule(
        "reward_funcs", lambda c: len(c.reward_funcs) > 0, "at least one is required; see --help", "(missing)"
    ),
    Rule(
        "reward_weights",
        lambda c: len(c.reward_weights) in (0, len(c.reward_funcs)),
        "needs one weight for each of the reward functions, {c.reward_funcs}",
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

NUMBER_RULES = [
    Rule(
        "eval_dataset",
        lambda c: c.eval_dataset == "" or has_data(c.eval_dataset),
        "no such file or directory",
    ),
    Rule("output_dir", lambda c: bool(c.output_dir), "is required", "(missing)"),
    *at_least(
        1,
        "prompts_per_step num_generations num_iterations updates_per_step micro_batch_tokens logging_steps max_steps "
        "eval_samples eval_generations",
    ),
    *at_least(
        0,
        "save_steps eval_steps warmup_steps log_completions record_batches save_total_limit max_skipped_steps shard_size "
        "max_resample_times beta weight_decay max_grad_norm learning_rate adam_epsilon",
    ),
    Rule("adam_beta1", lambda c: 0 <= c.adam_beta1 < 1, "must be at least 0 and below 1"),
    Rule("adam_beta2", lambda c: 0 <= c.adam_beta2 < 1, "must be at least 0 and below 1"),
    *above_0("ddp_timeout vllm_timeout vllm_max_gap"),
]

LORA_RULES = [
    Rule("lora_r", lambda c: c.lora_r >= 0, "must be 0 (no adapter) or more; 16 is usual"),
    Rule("lora_alpha", lambda c: c.lora_alpha > 0, "must be above 0; twice --lora_r is usual"),
    Rule(
        "lora_target_modules",
        lambda c: len(c.lora_target_modules) > 0,
        "name some modules, or all-linear",
        "(empty)",
    ),
    Rule(
        "lora_target_modules",
        lambda c: "all-linear" not in c.lora_target_modules or len(c.lora_target_modules) == 1,
        "all-linear stands alone",
    ),
    Rule(
        "lora_save",
        lambda c: c.lora_save == "merged" or c.lora_r > 0,
        "there is no adapter to save with --lora_r 0; set --lora_r (16 is usual) or leave it out",
    ),
    Rule(
        "model",
        lambda c: (
            not is_adapter(c.model) or c.lora_r == 0 or (c.lora_save == "merged" and c.vllm_sync != "adapter")
        ),
        "is an adapter itself, and a second one beside it would belong to no model on disk; use --lora_save merged and not "
        "--vllm_sync adapter, or train from a merged model",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or c.lora_r > 0,
        "weights of 4 bits cannot be trained; add --lora_r (16 is usual)",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or c.lora_save == "adapter",
        "an adapter is not merged into 4 bits; add --lora_save adapter",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or c.dtype != "float64",
        "goes with float32 or bfloat16, not with --dtype float64",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or ranks() == 1,
        "weights of 4 bits cannot be sharded; run on one rank",
    ),
    Rule(
        "load_in_4bit",
        lambda c: (
            not c.load_in_4bit
            or c.sampler != "vllm"
            or (c.vllm_mode == "server" and c.vllm_sync == "adapter")
        ),
        "vLLM can be given the adapter alone; add --vllm_sync adapter",
    ),
]

BATCH_RULES = [
    Rule(
        "updates_per_step",
        lambda c: c.prompts_per_step % c.updates_per_step == 0,
        "must divide --prompts_per_step {c.prompts_per_step}, so that groups stay whole",
    ),
    Rule(
        "shard_size",
        lambda c: c.shard_size == 0 or ranks() % c.shard_size == 0,
        "must divide the number of ranks, {ranks}",
    ),
]

LOSS_RULES = [
    Rule(
        "importance_sampling_level",
        lambda c: (
            not (c.ratio_level and c.importance_sampling_level)
            or c.ratio_level == c.importance_sampling_level
        ),
        "is another name of --ratio_level, which is {c.ratio_level}; give one of them",
    ),
    Rule(
        "advantage_estimator",
        lambda c: (
            ":" in c.advantage_estimator
            or c.advantage_estimator in ("group", "rloo", "reinforce_plus_plus", "opo", "gdpo")
        ),
        "is not one of group, rloo, reinforce_plus_plus, opo, gdpo, and not file.py:function",
    ),
    Rule(
        "num_generations",
        lambda c: c.num_generations >= 2 or ":" in c.advantage_estimator,
        "the baseline `{c.advantage_estimator}` compares completions of one prompt, so every advantage "
        "would be 0; use 2 or more (8 is usual)",
    ),
    Rule(
        "scale_rewards",
        lambda c: c.scale_rewards is None or c.advantage_estimator == "group",
        "is not used by --advantage_estimator {c.advantage_estimator}; leave it out or use group",
    ),
    Rule(
        "ref_model",
        lambda c: not c.ref_model or c.beta > 0,
        "is not used with --beta 0; set --beta (0.04 is usual) or leave it out",
    ),
    Rule("ref_model", lambda c: not c.ref_model or has_model(c.ref_model), "has no config.json"),
    Rule("group_filter", lambda c: not c.group_filter or ":" in c.group_filter, "expected file.py:function"),
    Rule("optim", lambda c: c.optim == "adamw" or ":" in c.optim, "expected adamw, or file.py:function"),
]

LAYOUT_RULES = [
    Rule(
        "share_prompts",
        lambda c: c.share_prompts != "always" or not c.compile,
        "does not go with --compile, which would compile every layer anew for it; use auto or never",
    ),
    Rule(
        "share_prompts",
        lambda c: c.share_prompts != "always" or c.packing != "packed",
        "completions that share prompts are padded, so --packing packed would do nothing; use auto for one of them",
    ),
    Rule(
        "share_prompts",
        lambda c: c.share_prompts != "always" or not c.gradient_checkpointing,
        "does not go with --gradient_checkpointing, which computes layers again in the backward; use auto or never",
    ),
    Rule(
        "compile",
        lambda c: not (c.compile and c.dtype == "float64"),
        "is for speed, and --dtype float64 for proofs; leave one of them out",
    ),
]

SAMPLER_RULES = [
    Rule(
        "sampler",
        lambda c: c.sampler in ("transformers", "vllm") or ":" in c.sampler,
        "is not one of transformers, vllm, and not file.py:name",
    ),
    Rule(
        "async_depth",
        lambda c: c.async_depth == 0 or c.sampler == "vllm",
        "needs an engine that samples while the model trains; add --sampler vllm with a server, or leave it out",
    ),
    Rule(
        "vllm_mode",
        lambda c: c.vllm_mode != "colocate" or c.sampler == "vllm",
        "is not used with --sampler {c.sampler}; add --sampler vllm",
    ),
    Rule(
        "async_depth",
        lambda c: c.vllm_mode != "colocate" or c.async_depth == 0,
        "an engine in this process does not sample while it trains; use --vllm_mode server, or leave it out",
    ),
    Rule(
        "dtype",
        lambda c: c.vllm_mode != "colocate" or c.dtype != "float64",
        "vLLM does not compute in it; use float32, or --sampler transformers",
    ),
    Rule(
        "vllm_gpu_memory_utilization",
        lambda c: 0 < c.vllm_gpu_memory_utilization < 1,
        "must be above 0 and below 1",
    ),
    Rule(
        "vllm_sync",
        lambda c: c.vllm_sync == "files" or (c.sampler == "vllm" and c.vllm_mode == "server"),
        "is for a server; add --sampler vllm --vllm_mode server, or leave it out",
    ),
    Rule(
        "vllm_sync",
        lambda c: c.vllm_sync != "adapter" or c.lora_r > 0,
        "there is no adapter with --lora_r 0; set --lora_r (16 is usual), or use files",
    ),
    Rule(
        "vllm_url",
        lambda c: (
            c.vllm_url != "" and ("://" not in c.vllm_url or c.vllm_url.startswith(("http://", "https://")))
        ),
        "must be HOST:PORT, or begin with http:// or https://",
    ),
]

TRAIN_RULES = [
    *NUMBER_RULES,
    *LORA_RULES,
    *BATCH_RULES,
    *LOSS_RULES,
    *LAYOUT_RULES,
    *SAMPLER_RULES,
]
# Options whose value may be an object that was given from Python.
OBJECTS = ("model", "dataset", "eval_dataset", "sampler", "advantage_estimator", "group_filter", "optim")


def check_model_config(config: ModelConfig, from_python: bool = False) -> None:
    """Raises ValueError naming the first option that cannot work.

    `from_python`: objects were given for the options that begin with `python:`. Without that, such an option says that
    the configuration is of a run that only its script can start.
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
