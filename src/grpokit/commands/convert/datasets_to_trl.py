"""Writes the datasets of a configuration as TRL's options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...data.names import read_names
from ...data.sources import is_hub_name, split_in

READERS = {".parquet": "parquet", ".csv": "csv"}


def name_datasets(values: Sequence[str], split: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns TRL's options for --dataset: `dataset_name` for one Hub dataset or folder, else `datasets:` with each reader.

    Args:
        values: the values of --dataset.
        split: --dataset_split.
        say: called with a sentence if the weights are left out.

    Example:
        >>> name_datasets(["org/data:main"], "", print)
        {'dataset_name': 'org/data', 'dataset_config': 'main'}
    """
    parts = read_names(values)
    names = [part.place for part in parts]
    if any(part.weight is not None for part in parts):
        say("dataset: TRL takes every row of its datasets once an epoch; the weights are left out")
    if len(names) != 1 or not _is_on_hub(names[0]):
        found = [_of_many(name, split) for name in names]
        return {"datasets": found} if found else {}
    (name,) = names
    org, _, config = name.partition(":")
    theirs = {"dataset_name": org, **({"dataset_config": config} if config else {})}
    if (split or split_in(name)) not in ("", "train"):
        theirs["dataset_train_split"] = split
    return theirs


def _is_on_hub(name: str) -> bool:
    return not Path(name).is_file() and (is_hub_name(name) or Path(name).exists())


def _of_many(name: str, split: str) -> dict[str, str]:
    """Returns one entry of `datasets:`."""
    if not _is_on_hub(name):
        return {"path": READERS.get(Path(name).suffix, "json"), "data_files": name, "split": "train"}
    org, _, config = name.partition(":")
    return {"path": org, **({"name": config} if config else {}), "split": split or split_in(name) or "train"}
