"""Prepares prompts that are read and tokenized as steps need them: rows of a large dataset, or an iterable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...common.console import say
from ...common.text import did_you_mean
from ...config.options import ModelConfig, TrainConfig
from ...data.addressed import ADDRESSABLE, AddressedRows, FirstRows
from ...data.form import ToolsOf
from ...data.lazy import LazyPrompts, rows_to_check
from ...data.rows import DatasetRow, describe_dataset, named_row, parse_row
from ...data.sources import Source
from ...data.stream import PromptStream
from ...data.tokenizing import added_before, require_template, tokenize
from ...types import Prompt
from .form import prompt_form
from .models import prompt_limit

LARGE = 50 << 20  # --lazy_tokenize auto is lazy above this many bytes of files,
MANY = 100_000  # or above this many rows


def check_prompt_column(config: ModelConfig, source: Source, rows: list[DatasetRow]) -> None:
    """Raises ValueError where no row has the column that --prompt_column names."""
    if config.prompt_column and rows and all(row.statement != config.prompt_column for row in rows):
        columns = sorted({name for row in rows for name in (row.statement, *row.columns)})
        raise ValueError(
            f"--prompt_column {config.prompt_column}: no row of {source.name} has it"
            f"{did_you_mean(config.prompt_column, columns)}; there are {', '.join(columns)}"
        )


def lazy_rows(config: TrainConfig, source: Source, longest: int | None) -> AddressedRows | None:
    """Opens the rows of a dataset one by one, where --lazy_tokenize says so; None where all are read at the start.

    Raises:
        ValueError: with --lazy_tokenize always, rows can't be read one by one, or nothing bounds a prompt's length.
    """
    how, what = config.lazy_tokenize, f"--lazy_tokenize {config.lazy_tokenize}: {source.flag} {source.name}"
    if how == "always" and source.addressed is None:
        raise ValueError(
            f"{what}: its rows can't be read one by one; use {ADDRESSABLE}, or --lazy_tokenize auto"
        )
    if how == "always" and longest is None:
        raise ValueError(f"{what}: the model's config has no context length; set --max_prompt_length")
    if how == "never" or source.addressed is None or longest is None:
        return None
    rows = source.addressed()
    if config.max_samples:
        rows = FirstRows(rows, config.max_samples)
    size = sum(file.stat().st_size for file in source.files)
    if len(rows) and (how == "always" or len(rows) > MANY or (size > LARGE and not config.max_samples)):
        return rows
    return None


def load_lazily(
    config: TrainConfig,
    source: Source,
    rows: AddressedRows,
    tokenizer: Any,
    longest: int,
    tools_of: ToolsOf | None,
) -> LazyPrompts:
    """Prepares prompts that are read and tokenized when a step needs them; checks some rows now, and says how many.

    Args:
        config: the options of the data.
        source: the dataset.
        rows: its rows by their number.
        tokenizer: the model's.
        longest: the most tokens of a prompt.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

    Returns:
        The prompts.

    Raises:
        ValueError: a row that was checked can't be used, and may not be left out.
    """
    make_prompt = prompt_maker(
        config, tokenizer, longest, tools_of, "; or leave such rows out with --skip_bad_rows"
    )
    prompts = LazyPrompts(
        rows,
        make_prompt,
        longest,
        seed=config.seed,
        shuffle=config.shuffle,
        flag=f"{source.flag} {source.name}",
    )
    checked: list[DatasetRow] = []
    for place, values in map(rows.row, rows_to_check(len(rows), config.seed)):
        try:
            checked.append(parse_row(values, place, config.prompt_column))
        except ValueError:  # one that --skip_bad_rows leaves out
            continue
    say(describe_dataset(source, checked, lazily=len(rows)))
    check_prompt_column(config, source, checked)
    of_chats = prompt_form(config).of_chats
    if of_chats and all(isinstance(prompt.content, str) for prompt in prompts.checked()):
        raise ValueError(
            f"{of_chats}: none of the checked prompts of {source.name} is a chat, so the option would do nothing; put it "
            "into the prompts' text, or give the prompts as `messages`"
        )
    return prompts


def prompt_maker(
    config: TrainConfig, tokenizer: Any, longest: int, tools_of: ToolsOf | None, fix: str = ""
) -> Callable[[Any, str], Prompt | None]:
    """Returns a function that makes the prompt of one row, or returns None if the options leave the row out.

    Args:
        config: the options of the data.
        tokenizer: the model's.
        longest: the most tokens of a prompt.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.
        fix: the end of the error for a malformed row.

    Returns:
        The function. It raises ValueError for a row that is bad or too long and may not be left out.
    """
    before, form = added_before(tokenizer), prompt_form(config, tools_of)

    def make(values: Any, place: str) -> Prompt | None:
        try:
            row = named_row(values, place, config.prompt_column)
            require_template([row], tokenizer)
            prompt = tokenize(row, tokenizer, form, before)
        except ValueError as error:
            if config.skip_bad_rows:
                return None
            raise ValueError(f"{error}{fix}") from error
        if len(prompt.ids) <= longest:
            return prompt
        if config.long_prompts == "truncate_left":
            return replace(prompt, ids=prompt.ids[-longest:])
        if config.long_prompts == "drop":
            return None
        raise ValueError(
            f"{prompt.source}: the prompt has {len(prompt.ids)} tokens, over {longest}; raise --max_prompt_length, or use "
            "--long_prompts truncate_left or drop"
        )

    return make


def load_stream(
    config: TrainConfig, tokenizer: Any, context: int | None, rows: Any, tools_of: ToolsOf | None = None
) -> PromptStream:
    """Prepares the prompts of an iterable, which is read as steps need them.

    Args:
        config: the options of the data.
        tokenizer: the model's.
        context: the model's longest context in tokens, where it is known.
        rows: the iterable.
        tools_of: the tools that a row's prompt shows, where an episode may have several turns.

    Returns:
        The prompts, in the order of the iterable.

    Raises:
        ValueError: nothing bounds the length of its prompts, it has no row, or an option needs rows that can be counted.
    """
    for option, fix in (
        ("max_samples", "cut it yourself: itertools.islice(rows, n)"),
        ("num_train_epochs", "use --max_steps"),
        ("sampler_order", "it has an order of its own"),
    ):
        if getattr(config, option):
            raise ValueError(f"--{option} {getattr(config, option)}: an iterable is read lazily; {fix}")
    longest, _ = prompt_limit(config, context)
    if longest is None:
        raise ValueError(
            "--max_prompt_length: an iterable is read lazily and the model's config has no context length, so that nothing "
            "bounds a prompt; set it"
        )
    make_prompt = prompt_maker(config, tokenizer, longest, tools_of)
    # `take` calls to keep: one per sampling round of this step and of the step sampled ahead, and one for held-back state.
    stream = PromptStream(rows, make_prompt, longest, kept_reads=2 * (1 + config.max_resample_times) + 1)
    columns = ", ".join(sorted(stream.columns)) or "none beside the prompt"
    say(f"train_dataset {type(rows).__name__}: read as steps need it, in its own order; columns: {columns}")
    return stream
