"""Options that do nothing without another one: such a value is a mistake, and is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..data.names import split_name
from .rules import Rule
from .teacher_options import teaches_alone


def unused(flags: str, is_used: Callable[[Any], bool], why: str) -> list[Rule]:
    """A rule for each of the flags: it has its default, unless something uses it."""
    return [
        Rule(flag, lambda c, flag=flag: is_used(c) or getattr(c, flag) == default_of(c, flag), why)
        for flag in flags.split()
    ]


def default_of(config: Any, flag: str) -> Any:
    """Returns the default of an option."""
    return type(config).__dataclass_fields__[flag].default


def has_reward(name: str) -> Callable[[Any], bool]:
    """Makes the check whether training or evaluation has the built-in reward `name`."""

    def used(config: Any) -> bool:
        held_out = [split_name(value)[1] for value in getattr(config, "eval_reward_funcs", ())]
        return name in (*config.reward_funcs, *held_out)

    return used


def _of_reward(name: str, flags: str) -> list[Rule]:
    return unused(
        flags, has_reward(name), f"does nothing without the reward {name}; add it to --reward_funcs"
    )


UNUSED_MODEL_OPTIONS = [
    *_of_reward("judge", "judge_url judge_rubric judge_model judge_cache judge_max_tokens"),
    *_of_reward(
        "cosine",
        "cosine_min_len_value_wrong cosine_max_len_value_wrong cosine_min_len_value_correct cosine_max_len_value_correct "
        "cosine_max_len",
    ),
    *_of_reward("repetition", "repetition_n_grams repetition_max_penalty"),
    *_of_reward("soft_overlong", "soft_cache_length"),
    *_of_reward("format", "format_pattern"),
    *unused(
        "max_environment_errors",
        lambda c: len(c.environment) > 0,
        "is for environments, and there is no --environment",
    ),
]

UNUSED_TRAIN_OPTIONS = [
    *unused(
        "group_filter advantage_estimator kl_in_reward turn_discount advantage_epsilon scale_rewards correction correction_mode "
        "opsm_threshold rejected_tokens",
        lambda c: not teaches_alone(c),
        "does nothing without rewards: the teacher alone teaches; add --reward_funcs, or leave it out",
    ),
    *unused(
        "teacher_coef teacher_kl_gradient", lambda c: len(c.teacher) > 0, "does nothing without --teacher"
    ),
    *unused(
        "lora_alpha lora_target_modules use_rslora use_dora lora_modules_to_save lora_save",
        lambda c: c.lora_r > 0,
        "is for an adapter; add --lora_r (16 is usual), or leave it out",
    ),
    *unused("muon_momentum", lambda c: c.optim == "muon", "is for --optim muon; add it, or leave this out"),
    *unused(
        "shuffle",
        lambda c: not c.sampler_order,
        "does nothing with --sampler_order, which chooses the rows of each step; leave it out",
    ),
    *unused(
        "ref_model_mixup_alpha ref_model_sync_steps",
        lambda c: c.sync_ref_model,
        "does nothing while the reference stands still; add --sync_ref_model, or leave it out",
    ),
    *unused(
        "eval_reward_funcs eval_temperature eval_top_p eval_top_k eval_min_p eval_repetition_penalty "
        "eval_max_completion_length eval_min_completion_length eval_stop",
        lambda c: len(c.eval_dataset) > 0 or (len(c.environment) > 0 and c.eval_steps > 0),
        "is for evaluation, and there is no --eval_dataset",
    ),
]
