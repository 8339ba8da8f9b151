"""Checks of a configuration that need neither torch nor the model: each names the flag, the value and the mend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..data.sources import is_hub_name
from .options import ModelConfig, TrainConfig


def _require(ok: bool, flag: str, value: Any, expected: str) -> None:
    if not ok:
        raise ValueError(f"--{flag} {value}: {expected}")


def check_model_config(config: ModelConfig) -> None:
    """Raise ValueError naming the first flag that cannot work."""
    for flag in ("model", "dataset"):
        value = getattr(config, flag)
        _require(value != "", flag, "(missing)", "is required; see --help")
        found = Path(value).exists() or (flag == "dataset" and is_hub_name(value))
        _require(found, flag, value, "no such file or directory")
    _require(Path(config.model).is_dir(), "model", config.model, "must be a directory with a config.json")
    described = any((Path(config.model) / name).is_file() for name in ("config.json", "adapter_config.json"))
    _require(described, "model", config.model, "has no config.json")
    _require(
        len(config.reward_funcs) > 0, "reward_funcs", "(missing)", "at least one is required; see --help"
    )
    if config.reward_weights:
        _require(
            len(config.reward_weights) == len(config.reward_funcs),
            "reward_weights",
            " ".join(map(str, config.reward_weights)),
            f"needs one weight for each of the {len(config.reward_funcs)} reward functions",
        )
    low, high = config.min_completion_length, config.max_completion_length
    _require(high >= 1, "max_completion_length", high, "must be at least 1")
    _require(
        0 <= low <= high, "min_completion_length", low, f"must be between 0 and max_completion_length, {high}"
    )
    _require("" not in config.stop, "stop", "''", "is in every completion; name a string, or leave it out")
    _require(
        config.temperature > 0, "temperature", config.temperature, "must be above 0 (evaluation adds greedy)"
    )
    _require(
        config.rollout_batch_size >= 1, "rollout_batch_size", config.rollout_batch_size, "must be at least 1"
    )
    length = config.max_prompt_length
    _require(length is None or length >= 1, "max_prompt_length", length, "must be at least 1")
    for flag in ("max_samples", "reward_timeout"):
        _require(getattr(config, flag) >= 0, flag, getattr(config, flag), "must be 0 or more")
    _require(config.num_threads >= 0, "num_threads", config.num_threads, "must be 0 or more")


RANGES = (
    (
        "prompts_per_step num_generations num_iterations updates_per_step micro_batch_tokens logging_steps max_steps "
        "eval_samples eval_generations",
        1,
    ),
    (
        "save_steps eval_steps warmup_steps log_completions record_batches save_total_limit max_skipped_steps shard_size "
        "max_resample_times "
        "beta weight_decay max_grad_norm learning_rate adam_epsilon",
        0,
    ),
)


def check_train_config(config: TrainConfig) -> None:
    """Raise ValueError naming the first flag that cannot work."""
    check_model_config(config)
    if config.eval_dataset:
        found = Path(config.eval_dataset).exists() or is_hub_name(config.eval_dataset)
        _require(found, "eval_dataset", config.eval_dataset, "no such file or directory")
    _require(bool(config.output_dir), "output_dir", "(missing)", "is required")
    for flags, least in RANGES:
        for flag in flags.split():
            value = getattr(config, flag)
            _require(value >= least, flag, value, "must be at least 1" if least else "must be 0 or more")
    for flag in ("adam_beta1", "adam_beta2"):
        value = getattr(config, flag)
        _require(0 <= value < 1, flag, value, "must be at least 0 and below 1")
    for flag in ("ddp_timeout", "vllm_timeout", "vllm_max_gap"):
        _require(getattr(config, flag) > 0, flag, getattr(config, flag), "must be above 0")
    _check_lora(config)
    _check_base(config)
    _check_quantized(config)
    _check_batch(config)
    _check_loss(config)
    _check_sharing(config)
    _require(
        not (config.compile and config.dtype == "float64"),
        "compile",
        config.compile,
        "is for speed, and --dtype float64 for proofs; leave one of them out",
    )
    _check_sampler(config)


def _check_sampler(config: TrainConfig) -> None:
    _require(
        config.async_depth == 0 or config.sampler == "vllm",
        "async_depth",
        config.async_depth,
        "needs an engine that samples while the model trains; add --sampler vllm with a server, or leave it out",
    )
    uses_vllm, inside = config.sampler == "vllm", config.vllm_mode == "colocate"
    _require(
        not inside or uses_vllm,
        "vllm_mode",
        "colocate",
        "is not used with --sampler transformers; add --sampler vllm",
    )
    _require(
        not inside or config.async_depth == 0,
        "async_depth",
        config.async_depth,
        "an engine in this process does not sample while it trains; use --vllm_mode server, or leave it out",
    )
    _require(
        not inside or config.dtype != "float64",
        "dtype",
        config.dtype,
        "vLLM does not compute in it; use float32, or --sampler transformers",
    )
    share = config.vllm_gpu_memory_utilization
    _require(0 < share < 1, "vllm_gpu_memory_utilization", share, "must be above 0 and below 1")
    _require(
        config.vllm_sync == "files" or (uses_vllm and not inside),
        "vllm_sync",
        config.vllm_sync,
        "is for a server; add --sampler vllm --vllm_mode server, or leave it out",
    )
    _require(
        config.vllm_sync != "adapter" or config.lora_r > 0,
        "vllm_sync",
        "adapter",
        "there is no adapter with --lora_r 0; set --lora_r (16 is usual), or use files",
    )
    url = config.vllm_url
    known = "://" not in url or url.startswith(("http://", "https://"))
    _require(url != "" and known, "vllm_url", url, "must be HOST:PORT, or begin with http:// or https://")


def _check_lora(config: TrainConfig) -> None:
    _require(config.lora_r >= 0, "lora_r", config.lora_r, "must be 0 (no adapter) or more; 16 is usual")
    _require(
        config.lora_alpha > 0, "lora_alpha", config.lora_alpha, "must be above 0; twice --lora_r is usual"
    )
    targets = config.lora_target_modules
    _require(len(targets) > 0, "lora_target_modules", "(empty)", "name some modules, or all-linear")
    _require(
        "all-linear" not in targets or len(targets) == 1,
        "lora_target_modules",
        " ".join(targets),
        "all-linear stands alone",
    )
    _require(
        config.lora_save == "merged" or config.lora_r > 0,
        "lora_save",
        config.lora_save,
        "there is no adapter to save with --lora_r 0; set --lora_r (16 is usual) or leave it out",
    )


def _check_base(config: TrainConfig) -> None:
    whole = (Path(config.model) / "config.json").is_file()
    _require(
        whole or config.lora_r == 0 or (config.lora_save == "merged" and config.vllm_sync != "adapter"),
        "model",
        config.model,
        "is an adapter itself, and a second one beside it would belong to no model on disk; use --lora_save merged and not "
        "--vllm_sync adapter, or train from a merged model",
    )


def _check_quantized(config: TrainConfig) -> None:
    def needs(ok: bool, what: str) -> None:
        _require(ok or not config.load_in_4bit, "load_in_4bit", True, what)

    needs(config.lora_r > 0, "weights of 4 bits cannot be trained; add --lora_r (16 is usual)")
    needs(config.lora_save == "adapter", "an adapter is not merged into 4 bits; add --lora_save adapter")
    needs(config.dtype != "float64", "goes with float32 or bfloat16, not with --dtype float64")
    needs(int(os.environ.get("WORLD_SIZE", "1")) == 1, "weights of 4 bits cannot be sharded; run on one rank")
    served = config.vllm_mode == "server" and config.vllm_sync == "adapter"
    needs(config.sampler != "vllm" or served, "vLLM can be given the adapter alone; add --vllm_sync adapter")


def _check_batch(config: TrainConfig) -> None:
    _require(
        config.prompts_per_step % config.updates_per_step == 0,
        "updates_per_step",
        config.updates_per_step,
        f"must divide --prompts_per_step {config.prompts_per_step}, so that groups stay whole",
    )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    _require(
        config.shard_size == 0 or ranks % config.shard_size == 0,
        "shard_size",
        config.shard_size,
        f"must divide the number of ranks, {ranks}",
    )


def _check_loss(config: TrainConfig) -> None:
    two_names = config.ratio_level and config.importance_sampling_level
    _require(
        not two_names or config.ratio_level == config.importance_sampling_level,
        "importance_sampling_level",
        config.importance_sampling_level,
        f"is another name of --ratio_level, which is {config.ratio_level}; give one of them",
    )
    _require(
        config.num_generations >= 2,
        "num_generations",
        config.num_generations,
        f"the baseline `{config.advantage_estimator}` compares completions of one prompt, so every advantage "
        "would be 0; use 2 or more (8 is usual)",
    )
    _require(
        config.scale_rewards is None or config.advantage_estimator == "group",
        "scale_rewards",
        config.scale_rewards,
        f"is not used by --advantage_estimator {config.advantage_estimator}; leave it out or use group",
    )
    _require(
        not config.ref_model or config.beta > 0,
        "ref_model",
        config.ref_model,
        "is not used with --beta 0; set --beta (0.04 is usual) or leave it out",
    )
    if config.ref_model:
        _require(
            (Path(config.ref_model) / "config.json").is_file(),
            "ref_model",
            config.ref_model,
            "has no config.json",
        )


def _check_sharing(config: TrainConfig) -> None:
    always = config.share_prompts == "always"
    _require(
        not (always and config.compile),
        "share_prompts",
        config.share_prompts,
        "does not go with --compile, which would compile every layer anew for it; use auto or never",
    )
    _require(
        not (always and config.packing == "packed"),
        "share_prompts",
        config.share_prompts,
        "completions that share prompts are padded, so --packing packed would do nothing; use auto for one of them",
    )
    _require(
        not (always and config.gradient_checkpointing),
        "share_prompts",
        config.share_prompts,
        "does not go with --gradient_checkpointing, which computes layers again in the backward; use auto or never",
    )
