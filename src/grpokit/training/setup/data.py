"""The prompts and the rewards of a configuration."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...data.prompts import Prompts
from ...data.rows import describe_dataset, read_rows
from ...data.sources import HELD_OUT, TRAINING, open_dataset
from ...rewards import Reward, load_rewards


def load_prompts(config: ModelConfig, path: str, flag: str, tokenizer: Any, context: int | None) -> Prompts:
    """A dataset's prompts, tokenized and measured against the model's context. Says what it is, and what was left out."""
    longest, reason = config.max_prompt_length, None
    if context is not None:
        room = context - config.max_completion_length
        if room < 1:
            raise ValueError(
                f"--max_completion_length {config.max_completion_length}: the model's context is {context} tokens, "
                f"which leaves no room for a prompt; use less than {context}"
            )
        if longest is None or longest > room:
            longest = room
            reason = (
                f"the {room} tokens that --max_completion_length {config.max_completion_length} leaves of "
                f"the model's context of {context}"
            )
    trains = isinstance(config, TrainConfig) and flag == "--dataset"
    split = config.eval_split if isinstance(config, TrainConfig) and not trains else config.dataset_split
    source = open_dataset(path, flag, split, TRAINING if trains else HELD_OUT)
    limit = config.max_samples if flag == "--dataset" else 0  # the other has --eval_samples
    rows, skipped = read_rows(source, config.skip_bad_rows, limit=limit)
    say(describe_dataset(source, rows))
    prompts = Prompts(
        rows,
        tokenizer,
        max_prompt_length=longest,
        limit_reason=reason,
        long_prompts=config.long_prompts,
        seed=config.seed,
        skip_bad_rows=config.skip_bad_rows,
        skipped_rows=skipped,
        flag=flag,
        system_prompt=config.system_prompt,
    )
    if prompts.skipped:
        say(f"{path}: skipped {prompts.skipped} bad rows, the first: {prompts.skipped_rows[0]}")
    if prompts.dropped:
        say(f"{path}: dropped {prompts.dropped} prompts longer than {longest} tokens")
    if prompts.truncated:
        say(f"{path}: cut {prompts.truncated} prompts to their last {longest} tokens")
    return prompts


def make_rewards(config: ModelConfig, columns: Collection[str]) -> tuple[Reward, ...]:
    """The reward functions of a configuration, checked against the dataset's columns."""
    return load_rewards(
        config.reward_funcs,
        config.reward_weights,
        answer_column=config.answer_column,
        format_pattern=config.format_pattern,
        max_completion_length=config.max_completion_length,
        soft_cache_length=config.soft_cache_length,
        repetition_n_grams=config.repetition_n_grams,
        repetition_max_penalty=config.repetition_max_penalty,
        columns=columns,
    )
