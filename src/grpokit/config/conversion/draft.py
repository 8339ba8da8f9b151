"""A conversion under way: what is left of their options, ours so far, and the notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..foreign_defaults import DEFAULTS, NAMES
from ..options import TrainConfig

Trainer = Literal["trl", "swift"]
OURS = TrainConfig.__dataclass_fields__


@dataclass
class Draft:
    """A conversion under way. Each rule takes what it understands out of `left`, and puts our options.

    Example:
        >>> draft = Draft.of({"beta": 0.1}, "trl")
        >>> draft.take("beta"), draft.take("loss_type"), "loss_type" in draft.given
        (0.1, 'dapo', False)
    """

    trainer: Trainer
    given: frozenset[str]  # the names that their file has
    left: dict[str, Any]  # their options, over their defaults, that no rule has taken yet
    folder: Path = field(default_factory=Path)  # where their file is
    ours: dict[str, Any] = field(default_factory=dict)
    defaulted: set[str] = field(default_factory=set)  # those of ours that come from their defaults
    said: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, theirs: Mapping[str, Any], trainer: Trainer, folder: Path | None = None) -> Draft:
        """Starts a conversion: their options over their trainer's defaults."""
        given = {name: value for name, value in theirs.items() if value is not None}
        return cls(trainer, frozenset(given), DEFAULTS[trainer] | given, folder or Path())

    @property
    def name(self) -> str:
        """Returns the trainer's name, as it is written."""
        return NAMES[self.trainer]

    def take(self, name: str, default: Any = None) -> Any:
        """Takes one of their options out of what is left."""
        value = self.left.pop(name, default)
        return default if value is None else value

    def take_number(self, name: str, default: float | None = None) -> float | None:
        """Takes an option that is a number. Says so and returns the default where it isn't one."""
        value = self.take(name, default)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        try:
            return float(value)
        except (TypeError, ValueError):
            self.say(f"{name}: {value!r} is no number; left out")
            return default

    def take_flag(self, name: str, default: bool = False) -> bool:
        """Takes an option that is true or false. YAML may have it as text."""
        value = self.take(name, default)
        return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)

    def take_word(self, name: str, default: str = "") -> str:
        """Takes an option that is one word."""
        return str(self.take(name, default))

    def put(self, name: str, value: Any, *sources: str) -> None:
        """Sets one of ours. `sources` are their options that it comes from (default: the one of the same name)."""
        self.ours[name] = value
        if not self.given & set(sources or (name,)):
            self.defaulted.add(name)

    def say(self, note: str) -> None:
        """Adds a note."""
        if note not in self.said:
            self.said.append(note)

    def unsupported(self, name: str, value: Any, why: str = "has no counterpart") -> None:
        """Says that an option is left out."""
        self.say(f"{name}: {shown(value)} {why}; left out")


def shown(value: Any) -> str:
    """Shows a value in a note, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(value: Any) -> list[Any]:
    """Returns a list of what may be one value, a list or nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
