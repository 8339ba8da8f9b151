"""`grpokit inspect-data`: shows rows as the model will see them, their lengths, and which would be left out and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..common.console import console, counting_if_slow, say
from ..common.text import one_line
from ..config.commands import InspectConfig
from ..config.options import ModelConfig
from ..data.prompts import Prompts
from ..data.rows import DatasetRow, describe_dataset, read_rows
from ..data.sources import open_dataset
from ..types import Messages, Prompt

if TYPE_CHECKING:
    from ..training.setup.environments import Environments

SHOWN = 10  # problems that are listed
WIDTH = 48  # wide enough for a title on one line


def inspect_data(config: InspectConfig) -> bool:
    """Prints a summary of a dataset. Returns whether a row of it is malformed.

    Raises:
        ValueError: there is no such data or model, or no row can be used. The message names the option.
    """
    source = open_dataset(config.file, "inspect-data", config.dataset_split)
    rows, bad = read_rows(
        source, skip_bad_rows=True, limit=config.max_samples, prompt_column=config.prompt_column
    )
    say(describe_dataset(source, rows))
    if not config.model and (config.tools or config.environment):
        raise ValueError("--tools, --environment: need --model DIR, whose chat template shows them")
    if not config.model:
        for row in rows[: config.rows]:
            console.print(_panel(Text(_written(row.content)), row.source, row.columns))
        console.print(_lengths("characters", [len(_written(row.content)) for row in rows]))
        say(
            "add --model DIR to see the prompts through its tokenizer and chat template, and lengths in tokens"
        )
    else:
        prompts, tokenizer, bad = _tokenized(config, rows, bad)
        for prompt in prompts[: config.rows]:
            text = visible(prompt.ids, tokenizer)
            console.print(_panel(text, prompt.source, prompt.columns, f", {len(prompt.ids)} tokens"))
        console.print(_lengths("tokens", [len(prompt.ids) for prompt in prompts]))
        _tell_long(prompts, config.max_prompt_length)
    console.print(_columns(rows))
    _tell("malformed: a run stops at the first, or leaves them out with --skip_bad_rows", bad)
    return bool(bad)


def _tokenized(
    config: InspectConfig, rows: Sequence[DatasetRow], bad: Sequence[str]
) -> tuple[list[Prompt], Any, tuple[str, ...]]:
    from ..training.setup.form import find_tokenizer, prompt_form
    from ..training.setup.parts import Parts

    if not any((Path(config.model) / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"--model {config.model}: has no config.json; name a model's directory")
    tokenizer = find_tokenizer(_as_run(config), Parts(), config.model)
    many = _environments(config, tokenizer) if config.tools or config.environment else None
    found = Prompts(
        rows,
        tokenizer,
        skip_bad_rows=True,
        skipped_rows=bad,
        flag=config.file,
        form=prompt_form(_as_run(config), None if many is None else many.tools_of),
    )
    prompts = found.in_order()
    if many is not None:
        prompts = _opened(config, many, prompts, tokenizer)
    return prompts, tokenizer, found.skipped_rows


def _environments(config: InspectConfig, tokenizer: Any) -> Environments:
    from ..training.setup.environments import find_environments
    from ..training.setup.parts import Parts

    found = find_environments(_as_run(config), Parts(), tokenizer)
    assert found is not None  # there are tools, or an environment
    return found


def _as_run(config: InspectConfig) -> ModelConfig:
    names = ("model", "tools", "environment", "seed", "system_prompt")
    names += ("chat_template", "chat_template_kwargs", "generation_prefix")
    return ModelConfig(**{name: getattr(config, name) for name in names})


def _opened(
    config: InspectConfig, environments: Environments, prompts: Sequence[Prompt], tokenizer: Any
) -> list[Prompt]:
    """Returns the prompts with the text or messages that `reset` adds for each group's first member, in the order of the data.

    Args:
        config: the command's options.
        environments: the tools and environments.
        prompts: the prompts of the rows.
        tokenizer: the model's.
    """
    from ..environments.dialogue import Dialogue
    from ..rollouts.other_side import open_each
    from ..training.setup.environments import make_setting

    environments.check_columns({name for prompt in prompts for name in prompt.columns})
    environments.check_rows(prompts)
    setting = make_setting(environments, _as_run(config), tokenizer, None, config.seed, frozenset())

    try:
        with counting_if_slow("resetting environments", len(prompts)) as progress:
            found: list[Prompt] = []
            for number, prompt in enumerate(prompts, 1):
                (opened,) = open_each([partial(Dialogue, setting, prompt, 0)])
                found.append(replace(prompt, ids=tuple(opened.prompt_ids)))
                progress(number)
    finally:
        setting.workers.close()
    return found


def visible(ids: Sequence[int], tokenizer: Any) -> Text:
    """Decodes the tokens, with special ones marked."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    text = Text()
    for is_special, run in groupby(ids, key=special.__contains__):
        shown = tokenizer.decode(list(run), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text.append(shown, style="bold magenta" if is_special else "")
    return text


def _written(content: str | Messages) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(f"{message['role']}: {message['content']}" for message in content)


def _panel(text: Text, source: str, columns: Mapping[str, Any], more: str = "") -> Panel:
    title = source.rpartition("/")[2] + more  # a long path would be cut at its end, which matters most
    shown = Text.assemble(text, *(part for name in columns for part in _column(name, columns[name])))
    return Panel(shown, title=Text(title), title_align="left")


def _column(name: str, value: Any) -> Iterator[tuple[str, str]]:
    yield f"\n{name}: ", "bold cyan"
    yield (
        one_line(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 200
        ),
        "",
    )


def _lengths(unit: str, lengths: Sequence[int]) -> Table:
    table = Table(
        title=f"length of {len(lengths):,} prompts in {unit}", title_justify="left", min_width=WIDTH
    )
    figures = {
        "min": min(lengths),
        "median": np.median(lengths),
        "p95": np.percentile(lengths, 95),
        "max": max(lengths),
    }
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:,.0f}" for value in figures.values()))
    return table


def _columns(rows: Sequence[DatasetRow]) -> Table:
    """Lists every column, the rows that have it, and its types."""
    table = Table(title="columns that rewards get", title_justify="left", min_width=WIDTH)
    for heading in ("column", "rows", "types", "for example"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "rows" else "left")
    for name in sorted({name for row in rows for name in row.columns}):
        values = [row.columns[name] for row in rows if row.columns.get(name) is not None]
        kinds = ", ".join(sorted({type(value).__name__ for value in values})) or "null"
        example = one_line(values[0] if values else "", 60)
        table.add_row(name, f"{len(values):,}", kinds, Text(example))
    return table


def _tell_long(prompts: Sequence[Prompt], limit: int | None) -> None:
    over = [p for p in prompts if limit is not None and len(p.ids) > limit]
    what = f"longer than --max_prompt_length {limit}: a run stops, or does what --long_prompts says"
    _tell(what, [f"{prompt.source}: {len(prompt.ids)} tokens" for prompt in over])


def _tell(what: str, places: Sequence[str]) -> None:
    if not places:
        return
    more = [f"... and {len(places) - SHOWN:,} more"] if len(places) > SHOWN else []
    say("\n".join([f"{len(places):,} rows are {what}", *(f"  {place}" for place in places[:SHOWN]), *more]))
