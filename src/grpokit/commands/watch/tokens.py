"""Reads the files tokens/step-N.safetensors: some completions of a step, token by token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ...runs.token_states import FOLDER, file_name, step_of
from .follow import inside

COLUMNS = ("ids", "logps", "entropies", "trainable", "advantages", "ratios", "pull", "state")


@dataclass(frozen=True)
class TokenFile:
    """A step's file of recorded tokens without the tokens: the record and the length of each completion, and the tokens' texts.

    Example: `read_tokens(Path("runs/demo"), 12).completions[0]["reward"]`
    """

    path: Path
    completions: tuple[dict[str, Any], ...]
    lengths: tuple[int, ...]
    pieces: tuple[str, ...]  # the texts of tokens; the tensor `piece` has places in it


def recorded_steps(folder: Path) -> list[int]:
    """Returns the steps whose tokens were recorded, in order."""
    directory = inside(folder, FOLDER)
    if directory is None or not directory.is_dir():
        return []
    found = (step_of(path.name) for path in directory.iterdir())
    return sorted(step for step in found if step is not None)


def place_of(folder: Path, step: int, group: Any, generation: int) -> int | None:
    """Returns the place of a completion in a step's file; None where its tokens were not recorded.

    Args:
        folder: the run's directory.
        step: the step.
        group: the number of its group within the step, as completions.jsonl has it.
        generation: its place in the group.
    """
    if group is None or step not in recorded_steps(folder):
        return None
    found = enumerate(read_tokens(folder, step).completions)
    return next(
        (i for i, told in found if (told.get("group"), told.get("generation")) == (group, generation)), None
    )


def read_tokens(folder: Path, step: int) -> TokenFile:
    """Reads what a step's file says of its completions; the tokens themselves stay on the disk.

    Raises:
        ValueError: there is no such file, it leads out of the run's directory, or it is not what it should be.
    """
    path = inside(folder, f"{FOLDER}/{file_name(step)}")
    if path is None:
        raise ValueError(
            f"step {step}: its tokens were not recorded; `grpokit train --log_tokens N` records N completions a step"
        )
    stat = path.stat()
    return _open(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _open(path: Path, modified: int, size: int) -> TokenFile:
    """Reads a file's description. `modified` and `size` make a rewritten file another key of the cache."""
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            lengths = file.get_tensor("lengths").tolist()
        completions, pieces = json.loads(told["completions"]), json.loads(told["pieces"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name}: is not a file of tokens ({error!r})") from error
    if not (isinstance(completions, list) and all(isinstance(each, dict) for each in completions)):
        raise ValueError(f"{path.name}: expected a list of objects as its completions")
    if len(completions) != len(lengths):
        raise ValueError(f"{path.name}: has {len(completions)} completions and {len(lengths)} lengths")
    return TokenFile(path, tuple(completions), tuple(lengths), tuple(pieces))


def tokens_of(file: TokenFile, place: int, first: int, count: int) -> dict[str, Any]:
    """Returns some tokens of a completion in columns: their texts, and the numbers of each.

    Args:
        file: the step's file.
        place: the completion's place in it, from 0.
        first: the first token, from 0.
        count: how many tokens.

    Raises:
        ValueError: there is no such completion.
    """
    if not 0 <= place < len(file.lengths):
        raise ValueError(f"completion {place}: the step has {len(file.lengths)} recorded ones, from 0")
    begin = sum(file.lengths[:place])
    start = begin + min(first, file.lengths[place])
    end = begin + min(first + count, file.lengths[place])
    try:
        with safe_open(file.path, framework="numpy") as opened:
            names = opened.keys()
            columns = {
                name: opened.get_slice(name)[start:end] for name in ("piece", *COLUMNS) if name in names
            }
    except (SafetensorError, OSError) as error:  # a resumed run has just rewritten it
        raise ValueError(f"{file.path.name}: can't be read now ({error}); try again") from error
    texts = [file.pieces[i] if 0 <= i < len(file.pieces) else "\ufffd" for i in columns.pop("piece").tolist()]
    return {"pieces": texts, **{name: _plain(column) for name, column in columns.items()}}


def _plain(column: np.ndarray[Any, Any]) -> list[Any]:
    """Converts a column to a list; numbers have five digits, and None stands for one that was not computed."""
    if column.dtype.kind in "iub":
        return column.tolist()
    return [
        float(f"{value:.5g}") if known else None
        for value, known in zip(column, np.isfinite(column), strict=True)
    ]
