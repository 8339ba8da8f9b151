"""The option names of TRL and ms-swift, and the names that they have here."""

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
    "vllm_server_base_url": "vllm_url",
    "vllm_server_timeout": "vllm_timeout",
    "max_length": "max_prompt_length",
    "stop_words": "stop",
}


# What needs no counterpart here, and why.
NOT_NEEDED = {
    "remove_unused_columns": "rewards get every column",
    "shuffle_dataset": "the order is shuffled, by --seed",
    "logging_dir": "a run is its --output_dir",
    "disable_dropout": "dropout is always off",
    "use_liger_kernel": "the head never holds all logits",
    "use_liger_loss": "the head never holds all logits",
    "ddp_find_unused_parameters": "ranks run under FSDP2",
    "dataloader_num_workers": "prompts are tokenized at the start",
    "rlhf_type": "it is GRPO",
    "do_train": "it trains",
    "cast_lm_head_to_fp32": "the head's parameters and log-probs are float32",
    "push_to_hub": "the model is in final/",
}


# Defaults of TRL 1.16 that are not grpokit's.
TRL_DEFAULTS = {"loss_type": "dapo", "lr_scheduler_type": "linear"}


# Options that only ms-swift has; and those whose defaults there are its own.
SWIFT = {
    *("rlhf_type", "train_type", "tuner_type", "torch_dtype", "attn_impl", "system", "dynamic_sample"),
    *(
        "overlong_filter",
        "soft_cache_length",
        "val_dataset",
        "external_plugins",
        "lora_rank",
        "target_modules",
    ),
    *("async_generate", "stop_words"),
}


ASK = ("loss_type", "beta", "learning_rate", "lr_scheduler_type", "temperature", "max_completion_length")


LEVELS = {"token": "token", "sequence": "sequence_product"}


COUNTED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)


IN_OPTIMIZER_STEPS = ("max_steps", "save_steps", "eval_steps", "warmup_steps", "logging_steps")


# All of theirs that this knows, for whoever writes one of them into a configuration of ours.
FOREIGN = (
    RENAMED.keys()
    | NOT_NEEDED.keys()
    | set(COUNTED)
    | SWIFT
    | {"num_train_epochs", "use_vllm", "use_peft", "bf16"}
)
