"""The way back: a configuration of grpokit becomes a YAML file for `trl grpo --config`, for TRL 1.16.

What is TRL's default is written out where it is not grpokit's, so that the file says the whole run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...config.conversion.draft import shown
from ...config.conversion.losses import NO_BOUND, VESPO
from ...config.foreign_defaults import TRL_DEFAULTS
from ...config.options import TrainConfig
from ...config.yaml import with_options
from ...data.form import parse_template_kwargs
from .data import TRL_REWARDS, listed
from .datasets_to_trl import name_datasets
from .to_trl_training import Say, write_batch, write_optimizer

# What carries over under another name.
RENAMED = {
    "attn_implementation": "attn_implementation",
    "opsm_threshold": "off_policy_mask_threshold",
    "shuffle": "shuffle_dataset",
    "compile": "torch_compile",
    "eval_generations": "num_generations_eval",
    "push_to_hub": "hub_model_id",
}
# What has the same name and meaning.
SAME = (
    *("output_dir", "trust_remote_code", "reward_weights", "max_completion_length", "temperature", "seed"),
    *("num_generations", "num_iterations", "beta", "entropy_coef", "top_entropy_quantile", "learning_rate"),
    *("lr_scheduler_type", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"),
    *("router_aux_loss_coef", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("sync_ref_model", "ref_model_mixup_alpha", "hub_private_repo", "hub_revision"),
    *("mask_truncated_completions", "gradient_checkpointing", "project", "run_name", "delta", "load_in_4bit"),
)
# What changes no result there, or has no meaning there.
NOT_NEEDED = {
    *("config", "num_threads", "skip_bad_rows", "reward_timeout", "rollout_batch_size", "decode"),
    *("share_prefill", "vllm_max_gap", "vllm_sync", "micro_batch_tokens", "packing", "share_prompts"),
    *("drop_dead_rows", "shard_size", "ddp_timeout", "record_batches", "log_completions", "save_dtype"),
    *("lora_save", "max_skipped_steps", "eval_samples", "lazy_tokenize"),
}
# Options of a loss's part, which only say something beside their loss.
TAKEN = {
    *("loss_type", "surrogate", "reduction", "ratio_level", "importance_sampling_level", "loss_kwargs"),
    *("epsilon", "epsilon_high", "tau_pos", "tau_neg", "sapo_gain", "kl_estimator", "kl_gradient"),
    *("advantage_estimator", "scale_rewards", "correction_mode", "correction_level", "correction_cap"),
    *("correction_low", "correction_high", "prompts_per_step", "updates_per_step", "max_steps"),
    *(f"correction_{name}" for name in ("estimator", "keep", "keep_low", "keep_high", "normalize")),
    *("correction", "num_train_epochs"),
    *("warmup_steps", "save_steps", "eval_steps", "logging_steps", "save_total_limit", "report_to", "model"),
    *(
        "dataset",
        "dataset_split",
        "eval_dataset",
        "eval_split",
        "dtype",
        "reward_funcs",
        "lora_r",
        "lora_alpha",
    ),
    *(
        "lora_target_modules",
        "sampler",
        "vllm_mode",
        "vllm_url",
        "vllm_timeout",
        "vllm_gpu_memory_utilization",
    ),
    *("optim", "stop", "min_completion_length", "warmup_ratio", "lr_scheduler_kwargs", "min_lr"),
    *("use_rslora", "use_dora", "lora_modules_to_save", "ref_model_sync_steps", "chat_template_kwargs"),
}


@dataclasses.dataclass(frozen=True)
class TrlLoss:
    """How TRL says a loss of the table. Example: `TrlLoss("grpo", "sequence", epsilon=3e-4, epsilon_high=4e-4)`"""

    name: str
    level: str = "token"
    epsilon: float | None = 0.2  # the row's own, where none is given
    epsilon_high: float | None = None  # None: epsilon
    scale: str = "group"


LOSSES = {
    "grpo": TrlLoss("grpo"),
    "bnpo": TrlLoss("bnpo"),
    "dr_grpo": TrlLoss("dr_grpo", scale="none"),
    "dapo": TrlLoss("dapo", epsilon_high=0.28),
    "cispo": TrlLoss("cispo", epsilon=None, epsilon_high=5.0),
    "sapo": TrlLoss("sapo", epsilon=None),
    "gspo": TrlLoss("grpo", "sequence", 3e-4, 4e-4),
    "luspo": TrlLoss("luspo", "sequence", 2e-3, 2.5e-3),
    "vespo": TrlLoss("vespo", epsilon=None),
    "importance_sampling": TrlLoss("dapo", epsilon=NO_BOUND),
}
# The clip with another reduction is another name there.
BY_REDUCTION = {
    "sequence_mean": "grpo",
    "token_mean": "dapo",
    "constant_length": "dr_grpo",
    "sequence_sum": "luspo",
    "rank_token_mean": "bnpo",
}


def convert_to_trl(
    values: Mapping[str, Any], where: str, processes: int = 1
) -> tuple[dict[str, Any], list[str]]:
    """Converts a configuration of grpokit to options of `trl grpo`.

    Args:
        values: the options by name.
        where: the file that they are from, for messages.
        processes: the number of processes that TRL's run will use.

    Returns:
        TRL's options, and a sentence for each that was changed or left out.

    Raises:
        ValueError: an option is unknown or has the wrong type, or the batch does not fit the number of processes.
    """
    options = {str(name).replace("-", "_"): value for name, value in values.items()}
    config = with_options(TrainConfig(), options, f"{where}: ")
    theirs: dict[str, Any] = {}
    said: list[str] = []
    _model_and_data(config, theirs, said.append)
    _loss(config, theirs, said.append)
    _correction(config, theirs, said.append)
    write_batch(config, processes, theirs, said.append)
    write_optimizer(config, theirs, said.append)
    _engine(config, theirs, said.append)
    for name in (*SAME, *RENAMED):
        value, default = getattr(config, name), TRL_DEFAULTS.get(RENAMED.get(name, name))
        differs = default is not None and value != default
        if value not in (None, (), "") and (name in options or differs or name == "output_dir"):
            theirs[RENAMED.get(name, name)] = list(value) if isinstance(value, tuple) else value
    if config.push_to_hub:
        theirs |= {"push_to_hub": True, "hub_strategy": "end"}
    if not config.eval_dataset:
        theirs.pop("num_generations_eval", None)
    for name in options.keys() - NOT_NEEDED - TAKEN - set(SAME) - RENAMED.keys():
        if getattr(config, name) != TrainConfig.__dataclass_fields__[name].default:
            said.append(f"{name}: {shown(options[name])} has no counterpart in TRL; left out")
    return theirs, said


def _model_and_data(config: TrainConfig, theirs: dict[str, Any], say: Say) -> None:
    name, at, revision = config.model.partition("@")
    if name:
        theirs["model_name_or_path"] = name
    if at:
        theirs["model_revision"] = revision
    theirs |= name_datasets(config.dataset, config.dataset_split, say)
    if config.eval_dataset and config.eval_dataset != config.dataset:
        say("eval_dataset, eval_steps: `trl grpo` evaluates on a split of the training data; left out")
        theirs.pop("eval_steps", None)
    elif config.eval_dataset:
        theirs |= {"eval_strategy": "steps", "dataset_test_split": config.eval_split or "test"}
    rewards = [_reward(word, say) for word in config.reward_funcs]
    if rewards:
        theirs["reward_funcs"] = rewards
    if config.chat_template_kwargs:
        theirs["chat_template_kwargs"] = parse_template_kwargs(config.chat_template_kwargs)
    if config.system_prompt:
        say("system_prompt: has no counterpart in `trl grpo`; put it in the rows")
    extra = {
        "min_new_tokens": config.min_completion_length or None,
        "stop_strings": list(config.stop) or None,
    }
    extra = {key: value for key, value in extra.items() if value is not None}
    if extra and config.sampler == "vllm":
        extra = {
            {"min_new_tokens": "min_tokens", "stop_strings": "stop"}[key]: value
            for key, value in extra.items()
        }
    if extra:
        theirs["generation_kwargs"] = extra


def _reward(word: str, say: Say) -> str:
    by_ours = {ours: name for name, ours in TRL_REWARDS.items()}
    if word in by_ours:
        say(f"reward_funcs: {word} becomes TRL's {by_ours[word]}, whose rules are its own")
        return by_ours[word]
    place, _, name = word.rpartition(":")
    if place.endswith(".py") and "/" not in place.removeprefix("./"):
        return f"{place.removeprefix('./').removesuffix('.py')}.{name}"
    if place and not place.endswith(".py"):
        return f"{place}.{name}"
    say(
        f"reward_funcs: {word} has no counterpart; `trl grpo` takes package.module.function, from its working directory"
    )
    return word


def _loss(config: TrainConfig, theirs: dict[str, Any], say: Say) -> None:
    row = LOSSES.get(config.loss_type)
    other = BY_REDUCTION.get(config.reduction or "")
    if row is not None and other is not None and row.name in BY_REDUCTION.values():
        row = dataclasses.replace(row, name=other)
    elif config.reduction:
        say(f"reduction: {config.reduction} has no counterpart in TRL; left out")
    if row is None or config.surrogate:
        say(
            f"loss_type: {config.surrogate or config.loss_type} has no counterpart in TRL; grpo is written, another loss"
        )
        row = TrlLoss("grpo")
    level = config.ratio_level or config.importance_sampling_level or row.level
    if level not in ("token", "sequence"):
        say(f"ratio_level: {level} has no counterpart in TRL; left out")
        level = row.level
    theirs |= {"loss_type": row.name, "importance_sampling_level": level}
    epsilon = row.epsilon if config.epsilon is None else config.epsilon
    high = row.epsilon_high if config.epsilon_high is None else config.epsilon_high
    theirs |= {key: v for key, v in (("epsilon", epsilon), ("epsilon_high", high)) if v is not None}
    for ours, name in (("tau_pos", "sapo_temperature_pos"), ("tau_neg", "sapo_temperature_neg")):
        if getattr(config, ours) is not None:
            theirs[name] = getattr(config, ours)
    if config.sapo_gain == "none":
        say("sapo_gain: none has no counterpart in TRL, whose gate has the paper's gain; left out")
    for item in config.loss_kwargs:
        name, _, value = item.partition("=")
        if name in VESPO:
            theirs[name] = float(value)
        else:
            say(f"loss_kwargs: {item} has no counterpart in TRL; left out")
    _kl_and_advantages(config, row, theirs, say)


def _kl_and_advantages(config: TrainConfig, row: TrlLoss, theirs: dict[str, Any], say: Say) -> None:
    if config.beta:
        theirs["use_bias_correction_kl"] = config.kl_gradient == "ratio"
        if config.kl_gradient == "k2" or config.kl_estimator in ("k1", "k2"):
            say("kl_estimator, kl_gradient: TRL has k3 alone, with its own gradient or times the ratio")
        if config.ref_model:
            say(f"ref_model: {config.ref_model}: TRL's reference is the initial model; left out")
    if config.advantage_estimator == "gdpo":
        theirs["multi_objective_aggregation"] = "normalize_then_sum"
    elif config.advantage_estimator != "group":
        say(f"advantage_estimator: {config.advantage_estimator} has no counterpart in TRL; group is its own")
    theirs["scale_rewards"] = config.scale_rewards or row.scale
    if config.mask_truncated_completions:
        say("mask_truncated_completions: a filtered completion stays in TRL's count of completions")


def _correction(config: TrainConfig, theirs: dict[str, Any], say: Say) -> None:
    """Writes the correction, which TRL has on by default with vLLM."""
    if config.sampler != "vllm":
        return
    from ...training.setup.loss import loss_from_config

    word, ours = "vllm_importance_sampling_", loss_from_config(config).correction
    if ours is None:
        theirs[f"{word}correction"] = False
        return
    level = {"token": "token", "sequence_product": "sequence"}.get(ours.level)
    for name, missing in (
        (f"correction_level: {ours.level}", level is None),
        ("correction_mode: reject", ours.mode == "reject"),
        (f"correction_keep: {ours.keep}", ours.keep is not None),
        ("correction_normalize", ours.normalize),
    ):
        if missing:
            theirs[f"{word}correction"] = False
            say(f"{name} has no counterpart in TRL; nothing corrects")
            return
    theirs[f"{word}mode"] = f"{level}_{ours.mode}"
    theirs[f"{word}clip_max"] = ours.cap if ours.mode == "truncate" else ours.high
    if ours.mode == "mask" or ours.low:
        theirs[f"{word}clip_min"] = ours.low


def _engine(config: TrainConfig, theirs: dict[str, Any], say: Say) -> None:
    """Writes the dtype, the adapter, vLLM and the trackers."""
    if config.dtype == "float64":
        say("dtype: float64 has no counterpart in TRL; float32 is written")
    if config.dtype != "auto":
        theirs["bf16"] = config.dtype == "bfloat16"
    else:
        say("dtype: auto: TRL computes in bfloat16 unless bf16 is false, on a CPU too")
    if config.lora_r:
        theirs |= {
            "use_peft": True,
            "lora_r": config.lora_r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": 0.0,
        }
        theirs["lora_target_modules"] = list(config.lora_target_modules)
        theirs |= {name: True for name in ("use_rslora", "use_dora") if getattr(config, name)}
        if config.lora_modules_to_save:
            theirs["lora_modules_to_save"] = list(config.lora_modules_to_save)
    if config.sampler == "vllm":
        theirs |= {"use_vllm": True, "vllm_mode": config.vllm_mode}
        if config.vllm_mode == "server":
            url = config.vllm_url
            theirs["vllm_server_base_url"] = url if "://" in url else f"http://{url}"
            theirs["vllm_server_timeout"] = config.vllm_timeout
        else:
            theirs["vllm_gpu_memory_utilization"] = config.vllm_gpu_memory_utilization
    elif config.sampler != "transformers":
        say(f"sampler: {config.sampler} has no counterpart in TRL; its own is used")
    theirs["report_to"] = listed(config.report_to) or "none"
