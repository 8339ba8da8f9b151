"""Defaults of TRL 1.16 and ms-swift 4.6 that change a run, each with the class that it was read from.

A converted file must not depend on whose defaults fill its gaps: the conversion lays a file over these, and writes out
each one that differs from grpokit's. `tests/commands/test_convert_against_trl.py` compares the TRL table with the
dataclasses themselves.
"""

from __future__ import annotations

from typing import Any

# transformers' TrainingArguments, from which both inherit.
TRANSFORMERS: dict[str, Any] = {
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "warmup_steps": 0,
    "save_steps": 500,
    "adam_beta1": 0.9,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "seed": 42,
}

# trl.GRPOConfig (trainer/grpo_config.py) and its base (trainer/base_config.py).
TRL_CONFIG: dict[str, Any] = TRANSFORMERS | {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",  # TrainingArguments
    "weight_decay": 0.0,  # TrainingArguments
    "adam_beta2": 0.999,  # TrainingArguments
    "per_device_train_batch_size": 8,  # TrainingArguments
    "gradient_accumulation_steps": 1,  # TrainingArguments
    "num_generations": 8,
    "max_completion_length": 512,
    "temperature": 1.0,
    "num_iterations": 1,
    "loss_type": "dapo",
    "epsilon": 0.2,  # and epsilon_high None: epsilon (GRPOTrainer.__init__)
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "scale_rewards": "group",  # for dr_grpo too
    "importance_sampling_level": "token",  # for luspo too
    "multi_objective_aggregation": "sum_then_normalize",
    "mask_truncated_completions": False,
    "shuffle_dataset": True,
    "vllm_mode": "colocate",
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
}
# trl.ModelConfig (trainer/model_config.py).
TRL_MODEL: dict[str, Any] = {"lora_r": 16, "lora_alpha": 32}
TRL_DEFAULTS: dict[str, Any] = (
    TRL_CONFIG | TRL_MODEL | {"bf16": True}
)  # bf16: _BaseConfig.__post_init__, without fp16

SWIFT_DEFAULTS: dict[str, Any] = TRANSFORMERS | {
    "beta": 0.04,  # RLHFArguments._init_grpo
    "loss_type": "grpo",  # RLHFArguments._set_default
    "temperature": 0.9,  # RLHFArguments
    "max_completion_length": 512,  # RLHFArguments
    "gradient_accumulation_steps": 1,  # RLHFArguments._set_default
    "per_device_train_batch_size": 1,  # TrainArgumentsMixin
    "weight_decay": 0.1,  # TrainArgumentsMixin
    "adam_beta2": 0.95,  # TrainArgumentsMixin
    "lr_scheduler_type": "cosine",  # TrainArgumentsMixin
    "num_generations": 8,  # GRPOArguments
    "num_iterations": 1,  # GRPOArguments
    "truncation_strategy": "left",  # RLHFArguments._init_grpo
    "epsilon": 0.2,  # GRPOArgumentsMixin; epsilon_high None: epsilon
    "importance_sampling_level": "token",  # GRPOArgumentsMixin
    "overlong_filter": False,  # GRPOArgumentsMixin
    "advantage_estimator": "grpo",  # GRPOArgumentsMixin; scale_rewards follows it (RLHFArguments._init_grpo)
    "max_resample_times": 3,  # GRPOArgumentsMixin; acts with dynamic_sample
    "rollout_importance_sampling_threshold": 2.0,  # GRPOArgumentsMixin; acts with its mode, None by default
    "dataset_shuffle": True,  # DataArguments
    "tuner_type": "lora",  # BaseArguments
    "lora_rank": 8,  # TunerArguments
    "lora_alpha": 32.0,  # TunerArguments
}
# SftArguments._init_override: by what is trained.
SWIFT_LEARNING_RATE = {"full": 1e-5, "lora": 1e-4}

DEFAULTS = {"trl": TRL_DEFAULTS, "swift": SWIFT_DEFAULTS}
NAMES = {"trl": "TRL", "swift": "ms-swift"}
