"""How --dataset names several datasets: `name=path:weight`, where the name and the weight may be left out."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import KINDS, suffix_of

WEIGHT = re.compile(r"(.+):([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)", re.IGNORECASE)


def split_name(value: str) -> tuple[str, str]:
    """Returns the name and the place of `name=place`; "" and the value where it has no name, or is a path itself."""
    name, equals, place = value.partition("=")
    has_name = equals and name.isidentifier() and not os.path.exists(value)
    return (name, place) if has_name else ("", value)


def split_weight(place: str) -> tuple[str, str]:
    """Splits `place:weight` into the place and the weight. The weight is "" if `place` exists as a path or ends with no number.

    Example:
        >>> split_weight("a.jsonl:0.7"), split_weight("folder:main")
        (('a.jsonl', '0.7'), ('folder:main', ''))
    """
    found = None if os.path.exists(place) else WEIGHT.fullmatch(place)
    return (found[1], found[2]) if found else (place, "")


@dataclass(frozen=True)
class NamedDataset:
    """One value of --dataset. Example: `NamedDataset("math=math.jsonl:0.7", "math", "math.jsonl", 0.7, True)`"""

    value: str  # as it was written
    name: str
    place: str  # a path, or a name of the Hub
    weight: float | None
    is_named: bool = False  # whether the name was given


def read_name(value: str) -> NamedDataset:
    """Reads one value of --dataset. The default name is the file's without its ending, the folder's, or the Hub dataset's.

    Example:
        >>> read_name("data/gsm8k.jsonl.gz:2").name, read_name("org/data:main").name
        ('gsm8k', 'org/data')
    """
    name, rest = split_name(value)
    place, weight = split_weight(rest)
    number = float(weight) if weight else None
    if name:
        return NamedDataset(value, name, place, number, is_named=True)
    path = Path(place)
    if suffix_of(path) in KINDS:
        own = (path.with_suffix("") if path.suffix == ".gz" else path).stem
    else:
        head = place.rpartition(":")[0] or place
        own = path.name if os.path.exists(place) else Path(head).name if os.path.exists(head) else head
    return NamedDataset(value, own or place, place, number)


def read_names(values: Sequence[str], flag: str = "--dataset") -> list[NamedDataset]:
    """Reads all values of --dataset, or of another option, `flag`.

    Raises:
        ValueError: two have one name, or some have a weight and others none, or a weight is not above 0.
    """
    found = [read_name(value) for value in values]
    for part in found:
        if part.weight is not None and not 0 < part.weight < math.inf:
            raise ValueError(f"{flag} {part.value}: the weight must be above 0")
    without = [part for part in found if part.weight is None]
    for part in without:  # a path that was meant to end in a weight
        place, _, end = part.place.rpartition(":")
        if os.path.exists(place) and not os.path.exists(part.place) and Path(place).is_file():
            raise ValueError(
                f"{flag} {part.value}: {end!r} is no weight; a weight is a number above 0, such as 0.7"
            )
    if without and len(without) < len(found):
        raise ValueError(
            f"{flag} {without[0].value}: has no weight, and others have one; give each a weight (path:0.5), or none"
        )
    name, count = Counter(part.name for part in found).most_common(1)[0] if found else ("", 0)
    if count > 1:
        again = [part for part in found if part.name == name]
        raise ValueError(
            f"{flag} {again[1].value}: two datasets are named {name!r}; name them: first={split_name(again[0].value)[1]} "
            f"second={split_name(again[1].value)[1]}"
        )
    return found


def has_source_column(values: Sequence[str]) -> bool:
    """Tells whether prompts get the column `data_source`: if there are several datasets, or one with a given name."""
    return len(values) > 1 or any(read_name(value).is_named for value in values)
