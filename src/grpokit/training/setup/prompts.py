"""Loads the prompts of a configuration: of one dataset, or of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...data.form import ToolsOf
from ...data.lazy import LazyPrompts
from ...data.memory import is_listed, memory_source
from ...data.mixture import MixedPrompts, source_seed
from ...data.names import NamedDataset, has_source_column, read_names
from ...data.ordered import OrderedPrompts
from ...data.prompts import Prompts
from ...data.rows import describe_dataset, read_rows
from ...data.sources import HELD_OUT, TRAINING, open_dataset
from ...data.stream import PromptStream
from ...data.tasks import EnvironmentTasks
from .form import prompt_form
from .lazily import check_prompt_column, lazy_rows, load_lazily, load_stream
from .models import prompt_limit

RowSource = Prompts | LazyPrompts | MixedPrompts
PromptSource = RowSource | OrderedPrompts | PromptStream | EnvironmentTasks
"""Where the prompts of a run come from: rows, an iterable, or an environment."""


def load_prompts(
    config: ModelConfig,
    path: str,
    flag: str,
    tokenizer: Any,
    context: int | None,
    rows: Any = None,
    tools_of: ToolsOf | None = None,
) -> Prompts | LazyPrompts:
    """Loads the prompts of a dataset, checks their lengths against the model's context, and prints what was recognised.

    Args:
        config: the options of the data.
        path: the dataset's path or name.
        flag: the option that named it, for messages.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: rows in memory, in the place of `path`.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

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
    if isinstance(config, TrainConfig) and trains:
        addressed = lazy_rows(config, source, longest)
        if addressed is not None and longest is not None:
            return load_lazily(config, source, addressed, tokenizer, longest, tools_of)
    limit = config.max_samples if flag == "--dataset" else 0  # --eval_dataset has --eval_samples
    read, skipped = read_rows(source, config.skip_bad_rows, limit=limit, prompt_column=config.prompt_column)
    say(describe_dataset(source, read))
    check_prompt_column(config, source, read)
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
        shuffle=config.shuffle if isinstance(config, TrainConfig) else True,
        form=prompt_form(config, tools_of),
    )
    if prompts.skipped:
        say(f"{path}: skipped {prompts.skipped} bad rows, the first: {prompts.skipped_rows[0]}")
    if prompts.dropped:
        say(f"{path}: dropped {prompts.dropped} prompts longer than {longest} tokens")
    if prompts.truncated:
        say(f"{path}: cut {prompts.truncated} prompts to their last {longest} tokens")
    return prompts


def load_datasets(
    config: ModelConfig,
    tokenizer: Any,
    context: int | None,
    tools_of: ToolsOf | None = None,
    given: Mapping[str, Any] | None = None,
) -> RowSource:
    """Loads the prompts of --dataset: one dataset, or several that are mixed.

    Args:
        config: the options of the data.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.
        given: rows in memory, or the paths of files, by the dataset's name.

    Returns:
        The prompts.
    """
    parts = read_names(config.dataset)

    def load(part: NamedDataset, seed: int) -> Prompts | LazyPrompts:
        rows = (given or {}).get(part.name)
        rows = None if isinstance(rows, str | PurePath) else rows
        own = replace(config, seed=seed)
        return load_prompts(own, part.place, "--dataset", tokenizer, context, rows, tools_of)

    if not has_source_column(config.dataset):
        return load(parts[0], config.seed)
    seeds = [source_seed(config.seed, part.name) if len(parts) > 1 else config.seed for part in parts]
    loaded = {part.name: load(part, seed) for part, seed in zip(parts, seeds, strict=True)}
    weights = [part.weight for part in parts if part.weight is not None]
    mixed = MixedPrompts(loaded, weights or None, config.seed)
    if len(parts) > 1 and isinstance(config, TrainConfig) and not config.sampler_order:
        shares = (f"{name} {share:.1%}" for name, share in zip(mixed.names, mixed.shares, strict=True))
        how = "shuffled and repeated by itself" if config.shuffle else "in its own order, repeated by itself"
        say(f"mixed: {', '.join(shares)}, each {how}")
    return mixed


def load_training_prompts(
    config: TrainConfig,
    tokenizer: Any,
    context: int | None,
    rows: Any = None,
    tools_of: ToolsOf | None = None,
) -> RowSource | PromptStream:
    """Loads the prompts to train on.

    Args:
        config: the options of the data.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: rows in memory or an iterable, in the place of --dataset.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

    Returns:
        The prompts.
    """
    if rows is None:
        return load_datasets(config, tokenizer, context, tools_of)
    if is_listed(rows):
        return load_prompts(config, config.dataset[0], "--dataset", tokenizer, context, rows, tools_of)
    return load_stream(config, tokenizer, context, rows, tools_of)
