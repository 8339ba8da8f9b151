"""Offline verifiable tasks: for each, a seeded generator of rows and a tiny model that half knows the answer.

`write_task` makes a directory from which `grpokit train` can start at once. Nothing is downloaded.

    DIR/model/        config, safetensors, tokenizer, generation_config
    DIR/train.jsonl   rows {"prompt", "answer"}
    DIR/eval.jsonl    held-out rows; none of their prompts is in train.jsonl

Importing this imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.text import did_you_mean
from . import sort_digits


@dataclass(frozen=True)
class Task:
    """A task: its summary, its rows, and the model that starts on it.

    Example:
        >>> task = Task("sort 2 to 5 digits", sort_digits.make_rows, sort_digits.make_model, warmup_steps=150)
    """

    summary: str
    make_rows: Callable[[int], tuple[list[dict[str, str]], list[dict[str, str]]]]  # seed → train, eval
    make_model: Callable[..., tuple[Any, Any]]  # (rows, *, seed, steps) → model, tokenizer
    warmup_steps: int  # supervised steps that bring the model to where GRPO has something to improve


TASKS: dict[str, Task] = {
    "sort_digits": Task(
        summary="sort 2 to 5 digits: 3142= → 1234",
        make_rows=sort_digits.make_rows,
        make_model=sort_digits.make_model,
        warmup_steps=sort_digits.WARMUP_STEPS,
    ),
}


def write_task(name: str, output_dir: str | Path, seed: int = 42, warmup_steps: int | None = None) -> Path:
    """Writes the model and the data of a task.

    The same seed gives the same rows byte for byte, and the same weights on the same kind of machine. No global random state
    is changed.

    Args:
        name: a key of TASKS.
        output_dir: the directory to write.
        seed: of rows and model.
        warmup_steps: supervised steps; None: the task's own number.

    Returns:
        The directory.

    Raises:
        ValueError: an unknown task, a negative number of steps, or an output_dir that is a file.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown{did_you_mean(name, TASKS)}; there is: {', '.join(TASKS)}")
    task, output = TASKS[name], Path(output_dir)
    steps = task.warmup_steps if warmup_steps is None else warmup_steps
    if steps < 0:
        raise ValueError(f"warmup_steps {steps}: must be 0 or more")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output}: is a file, not a directory")
    output.mkdir(parents=True, exist_ok=True)

    train, held_out = task.make_rows(seed)
    write_jsonl(output / "train.jsonl", train)
    write_jsonl(output / "eval.jsonl", held_out)
    model, tokenizer = task.make_model(train, seed=seed, steps=steps)
    _save(output / "model", model, tokenizer)
    return output


def _save(directory: Path, *parts: Any) -> None:
    """Calls save_pretrained without transformers' progress bar, which would flash up for one small file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        for part in parts:
            part.save_pretrained(directory)
    finally:
        if shown:
            logging.enable_progress_bar()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line. The bytes depend on the rows only, not on platform or locale."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8"))
