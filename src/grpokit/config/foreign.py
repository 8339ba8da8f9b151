"""The option names of TRL and ms-swift, and the names that they have here. `foreign_defaults.py` has their defaults."""

from __future__ import annotations

# Their name → ours, where the value carries over as it is. Options of the same name are not listed.
RENAMED = {
    "model_name_or_path": "model",
    "dataset_name": "dataset",
    "dataset_train_split": "dataset_split",
    "dataset_test_split": "eval_split",
    "val_dataset": "eval_dataset",
    "system": "system_prompt",
    "attn_impl": "attn_implementation",
    "torch_dtype": "dtype",
    "torch_compile": "compile",
    "overlong_filter": "mask_truncated_completions",
    "sapo_temperature_pos": "tau_pos",
    "sapo_temperature_neg": "tau_neg",
    "off_policy_mask_threshold": "opsm_threshold",
    "off_policy_sequence_mask_delta": "opsm_threshold",
    "num_generations_eval": "eval_generations",
    "shuffle_dataset": "shuffle",
    "dataset_shuffle": "shuffle",
    "vllm_server_base_url": "vllm_url",
    "vllm_server_timeout": "vllm_timeout",
    "max_length": "max_prompt_length",
    "stop_words": "stop",
    "response_prefix": "generation_prefix",
}

MEMORY = "--micro_batch_tokens bounds the memory, and changes no result"
RANKS = "ranks run under FSDP2; start them by torchrun"
LOGS = "a run logs every step"
HEAD = "the head never holds all logits"
CHECKPOINTS = "a checkpoint is complete, and its weights are safetensors"

# What needs no counterpart here, and why.
NOT_NEEDED = {
    "remove_unused_columns": "rewards get every column",
    "logging_dir": "a run is its --output_dir",
    "logging_strategy": LOGS,
    "logging_first_step": LOGS,
    "log_level": LOGS,
    "log_entropy": LOGS,
    "log_rollout_offpolicy_metrics": LOGS,
    "disable_dropout": "dropout is always off",
    "use_liger_kernel": HEAD,
    "use_liger_loss": HEAD,
    "cast_lm_head_to_fp32": "the head's parameters and log-probs are float32",
    "per_device_eval_batch_size": MEMORY,
    "eval_accumulation_steps": MEMORY,
    "padding_free": "--packing auto decides, and changes no result",
    "gradient_checkpointing_kwargs": "checkpointing is non-reentrant",
    "vit_gradient_checkpointing": "text models only",
    "deepspeed": RANKS,
    "fsdp": RANKS,
    "fsdp_config": RANKS,
    "ddp_backend": RANKS,
    "ddp_find_unused_parameters": RANKS,
    "ds3_gather_for_generation": RANKS,
    "local_rank": RANKS,
    "dataloader_num_workers": "the run tokenizes prompts itself; --lazy_tokenize says when",
    "dataloader_pin_memory": "the run tokenizes prompts itself; --lazy_tokenize says when",
    "dataset_num_proc": "the run tokenizes prompts itself; --lazy_tokenize says when",
    "load_from_cache_file": "the run tokenizes prompts itself; --lazy_tokenize says when",
    "rlhf_type": "it is GRPO",
    "do_train": "it trains",
    "do_eval": "--eval_dataset decides",
    "hub_strategy": "--push_to_hub uploads final/, at the end",
    "hub_always_push": "--push_to_hub uploads final/, at the end",
    "hub_token": "the token is HF_TOKEN's, or that of `hf auth login`",
    "overwrite_output_dir": "an --output_dir that holds a run is never overwritten",
    "save_only_model": CHECKPOINTS,
    "save_safetensors": CHECKPOINTS,
    "add_version": "a run is its --output_dir",
    "check_model": "files are checked when they are read",
    "model_type": "transformers finds it in config.json",
    "use_logits_to_keep": HEAD,
    "sleep_level": "colocated vLLM sleeps while the model trains",
    "vllm_enable_sleep_mode": "colocated vLLM sleeps while the model trains",
    "offload_model": "--micro_batch_tokens and --vllm_gpu_memory_utilization bound the memory",
    "offload_optimizer": "--micro_batch_tokens and --vllm_gpu_memory_utilization bound the memory",
    "move_model_batches": "--vllm_sync decides how weights travel",
    "vllm_device": "vLLM is a server, or colocated",
    "vllm_max_model_len": "changes no result",
    "vllm_max_model_length": "changes no result",
    "vllm_max_num_seqs": "changes no result",
    "vllm_tensor_parallel_size": "changes no result; a server is told when it starts, colocated vLLM is one per rank",
    "vllm_enforce_eager": "changes no result",
    "vllm_enable_prefix_caching": "changes no result",
    "vllm_enable_lora": "--vllm_sync adapter sends the adapter alone",
    "sequence_parallel_size": "changes no result",
    "dataloader_drop_last": "a step always has all its prompts",
}

# Options that only one of the two has. `torch_dtype` is no sign: recipes for older TRL have it too.
TRL_ONLY = {
    *("model_name_or_path", "model_init_kwargs", "dataset_name", "dataset_config", "dataset_train_split"),
    *("dataset_test_split", "datasets", "dataset_mixture", "use_peft", "lora_r", "lora_target_modules"),
    "lora_modules_to_save",
    *(
        "mask_truncated_completions",
        "sapo_temperature_pos",
        "sapo_temperature_neg",
        "vespo_k_pos",
        "vespo_k_neg",
    ),
    *("vespo_lambda_pos", "vespo_lambda_neg", "off_policy_mask_threshold", "use_bias_correction_kl"),
    *("multi_objective_aggregation", "shuffle_dataset", "disable_dropout", "cast_lm_head_to_fp32"),
    *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_cap"),
    *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "attn_implementation"),
    *("reward_model_name_or_path", "max_prompt_length", "use_adaptive_entropy", "generation_kwargs"),
}
SWIFT_ONLY = {
    *("rlhf_type", "train_type", "tuner_type", "model", "dataset", "attn_impl", "system", "dynamic_sample"),
    *(
        "overlong_filter",
        "soft_cache_length",
        "soft_max_length",
        "val_dataset",
        "external_plugins",
        "lora_rank",
    ),
    *("target_modules", "async_generate", "stop_words", "split_dataset_ratio", "dataset_shuffle", "template"),
    *("rollout_importance_sampling_mode", "rollout_importance_sampling_threshold", "advantage_estimator"),
    *("off_policy_sequence_mask_delta", "kl_in_reward", "tau_pos", "tau_neg", "real_tau", "fipo_decay_rate"),
    *("fipo_clip_range", "fipo_clip_high_only", "fipo_safety_threshold", "max_new_tokens", "response_length"),
    *("truncation_strategy", "multi_turn_scheduler", "sleep_level", "offload_model", "offload_optimizer"),
    *("move_model_batches", "log_entropy", "model_type", "max_resample_times", "reward_model"),
    *("reward_model_plugin", "padding_free", "packing", "max_length", "freeze_parameters_regex"),
    *("modules_to_save", "trainable_parameters_regex", "cosine_max_len"),
    *("cosine_min_len_value_wrong", "cosine_max_len_value_wrong", "cosine_min_len_value_correct"),
    "cosine_max_len_value_correct",
}

COUNTED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)

IN_OPTIMIZER_STEPS = (
    "max_steps",
    "save_steps",
    "eval_steps",
    "warmup_steps",
    "logging_steps",
    "ref_model_sync_steps",
)

EPISODES = "here --tools and --environment answer the model"
ADAPTER = "--lora_r above 0 trains an adapter"
UPDATES = "--prompts_per_step says what a step samples, --updates_per_step how many optimizer steps it makes"
LENGTH = "here it is --max_completion_length"
REWARD_MODEL = "--reward_funcs takes the reward model's directory or name"

# What has another form here: what to write in its place, for whoever passes one of theirs to `grpokit train`.
COUNTERPARTS = {
    "per_device_train_batch_size": f"{UPDATES}; {MEMORY}",
    "gradient_accumulation_steps": f"{UPDATES}; {MEMORY}",
    "steps_per_generation": UPDATES,
    "generation_batch_size": UPDATES,
    "use_peft": ADAPTER,
    "tuner_type": ADAPTER,
    "train_type": ADAPTER,
    "lora_rank": "here it is --lora_r",
    "target_modules": "here it is --lora_target_modules",
    "modules_to_save": "here it is --lora_modules_to_save",
    "use_vllm": "--sampler vllm samples by vLLM",
    "bf16": "--dtype bfloat16 computes in it",
    "fp16": "--dtype bfloat16 takes its place",
    "hub_model_id": "--push_to_hub takes ORG/NAME",
    "dynamic_sample": "--max_resample_times above 0 does it",
    "max_new_tokens": LENGTH,
    "response_length": LENGTH,
    "truncation_strategy": "here it is --long_prompts",
    "reward_model": REWARD_MODEL,
    "reward_model_name_or_path": REWARD_MODEL,
    "multi_turn_scheduler": EPISODES,
    "enable_thinking": "--chat_template_kwargs enable_thinking=false turns it off",
    "eval_strategy": "--eval_steps N evaluates every N steps",
    "save_strategy": "--save_steps N writes a checkpoint every N steps",
    "columns": "--prompt_column and --answer_column name the prompt's column and the answer's",
    "interleave_prob": "--dataset takes weights: a.jsonl:0.7 b.jsonl:0.3",
    "early_stop_interval": "--early_stop METRIC:PATIENCE ends the run, such as eval/reward:3",
    "load_best_model_at_end": "best/ has the model of the best eval/reward, and final/ the last one",
    "metric_for_best_model": "best/ has the model of the best eval/reward",
}

# All of theirs that this knows, for whoever writes one of them into a configuration of ours.
FOREIGN = (
    RENAMED.keys()
    | NOT_NEEDED.keys()
    | set(COUNTED)
    | TRL_ONLY
    | SWIFT_ONLY
    | COUNTERPARTS.keys()
    | {"num_train_epochs", "warmup_ratio"}
)
