"""Loads the prompts and the rewards of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...data.memory import is_listed, memory_source
from ...data.prompts import Prompts, require_template, tokenize
from ...data.rows import DatasetRow, describe_dataset, read_rows
from ...data.sources import HELD_OUT, TRAINING, open_dataset
from ...data.stream import PromptStream
from ...rewards import Reward, load_rewards
from ...types import Prompt


def load_prompts(
    config: ModelConfig, path: str, flag: str, tokenizer: Any, context: int | None, rows: Any = None
) -> Prompts:
    """Loads the prompts of a dataset, tokenized and measured against the model's context, and says what it is.

    Args:
        config: the options of the data.
        path: the dataset's path or name.
        flag: the option that named it, for messages.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: rows in memory, in the place of `path`.

    Returns:
        The prompts.

    Raises:
        ValueError: the dataset can't be read, or a prompt is too long.
    """
    longest, reason = prompt_limit(config, context)
    trains = isinstance(config, TrainConfig) and flag == "--dataset"
    if rows is None:
        split = config.eval_split if isinstance(config, TrainConfig) and not trains else config.dataset_split
        source = open_dataset(path, flag, split, TRAINING if trains else HELD_OUT)
    else:
        source = memory_source(rows, "train_dataset" if trains else flag.removeprefix("--"))
    limit = config.max_samples if flag == "--dataset" else 0  # the other has --eval_samples
    read, skipped = read_rows(source, config.skip_bad_rows, limit=limit)
    say(describe_dataset(source, read))
    prompts = Prompts(
        read,
        tokenizer,
        max_prompt_length=longest,
        limit_reason=reason,
        long_prompts=config.long_prompts,
        seed=config.seed,
        skip_bad_rows=config.skip_bad_rows,
        skipped_rows=skipped,
        flag=flag,
        system_prompt=config.system_prompt,
        shuffle=config.shuffle if isinstance(config, TrainConfig) else True,
    )
    if prompts.skipped:
        say(f"{path}: skipped {prompts.skipped} bad rows, the first: {prompts.skipped_rows[0]}")
    if prompts.dropped:
        say(f"{path}: dropped {prompts.dropped} prompts longer than {longest} tokens")
    if prompts.truncated:
        say(f"{path}: cut {prompts.truncated} prompts to their last {longest} tokens")
    return prompts


def load_stream(config: TrainConfig, tokenizer: Any, context: int | None, rows: Any) -> PromptStream:
    """Prepares the prompts of an iterable, which is read as steps need them. Takes what `load_prompts` takes.

    Raises ValueError where nothing bounds the length of its prompts, or it has no row.
    """
    longest, _ = prompt_limit(config, context)
    if longest is None:
        raise ValueError(
            "--max_prompt_length: an iterable is read lazily and the model's config has no context length, so that nothing "
            "bounds a prompt; set it"
        )

    def fit(row: DatasetRow) -> Prompt | None:
        try:
            require_template([row], tokenizer)
            prompt = tokenize(row, tokenizer, config.system_prompt)
        except ValueError:
            if config.skip_bad_rows:
                return None
            raise
        if len(prompt.ids) <= longest:
            return prompt
        if config.long_prompts == "truncate_left":
            return Prompt(0, prompt.ids[-longest:], prompt.content, prompt.columns, prompt.source)
        if config.long_prompts == "drop":
            return None
        raise ValueError(
            f"{prompt.source}: the prompt has {len(prompt.ids)} tokens, over {longest}; raise --max_prompt_length, or use "
            "--long_prompts truncate_left or drop"
        )

    stream = PromptStream(rows, fit, longest)
    columns = ", ".join(sorted(stream.columns)) or "none beside the prompt"
    say(f"--dataset {type(rows).__name__}: read as steps need it, in its own order; columns: {columns}")
    return stream


def load_training_prompts(
    config: TrainConfig, tokenizer: Any, context: int | None, rows: Any = None
) -> Prompts | PromptStream:
    """Loads the prompts to train on: of --dataset, or of `rows` in memory, listed or lazily read."""
    if rows is None or is_listed(rows):
        return load_prompts(config, config.dataset, "--dataset", tokenizer, context, rows)
    return load_stream(config, tokenizer, context, rows)


def prompt_limit(config: ModelConfig, context: int | None) -> tuple[int | None, str | None]:
    """The longest prompt in tokens (None: unknown), and why, where it isn't --max_prompt_length itself."""
    longest = config.max_prompt_length
    if context is None:
        return longest, None
    room = context - config.max_completion_length
    if room < 1:
        raise ValueError(
            f"--max_completion_length {config.max_completion_length}: the model's context is {context} tokens, "
            f"which leaves no room for a prompt; use less than {context}"
        )
    if longest is not None and longest <= room:
        return longest, None
    return room, (
        f"the {room} tokens that --max_completion_length {config.max_completion_length} leaves of "
        f"the model's context of {context}"
    )


def make_rewards(
    config: ModelConfig,
    columns: Collection[str],
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> tuple[Reward, ...]:
    """Makes the rewards of a configuration, checked against the dataset's columns.

    `functions` are objects from Python, by the names that --reward_funcs has for them.
    """
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
        functions=functions or {},
    )
