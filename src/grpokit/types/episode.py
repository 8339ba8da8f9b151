"""An episode: what a completion of several turns has beside its tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .nouns import Messages


class EpisodeFailed(ValueError):
    """What answers the model in an episode has failed: the environment raised, or broke its contract."""


class NoRoom(Exception):
    """An episode can't begin now, but will later, such as on a server that is full. It is begun again."""


def rewards_of_turns(rewards: Sequence[float], total: float | None) -> tuple[float, ...] | None:
    """Returns the rewards of an episode's turns, where there are any and they add up to its reward `total`; else None.

    Example:
        >>> rewards_of_turns([0.5, 1.0], 1.5), rewards_of_turns([0.5, 1.0], 7.0)
        ((0.5, 1.0), None)
    """
    adds_up = total is not None and math.isclose(sum(rewards), total, rel_tol=1e-9, abs_tol=1e-12)
    return tuple(rewards) if adds_up and any(rewards) else None


@dataclass(frozen=True, eq=False)
class Episode:
    """The turns of a completion, and what was said in them.

    Example:
        >>> episode = Episode((1, 7), [{"role": "assistant", "content": "9"}], ((0, 2),), "no_call")
        >>> Episode.from_json(episode.to_json()).turns
        ((0, 2),)
    """

    prompt_ids: tuple[int, ...]  # the prompt that this episode began with
    messages: Messages  # the model's turns, the tools' answers and the environment's, after the prompt
    turns: tuple[tuple[int, int], ...]  # first and last + 1 of the tokens that were sampled in each turn
    ending: str  # done, no_call, turns, length or error
    prompt: Messages | None = None  # the prompt's messages, where `reset` added to those of the row
    kind: str | None = None  # the class of the environment
    reward: float | None = None  # its own reward
    # What each turn has added to it; None where that isn't known.
    turn_rewards: tuple[float, ...] | None = None
    calls: Mapping[str, int] | None = None  # calls of each tool
    failures: int = 0  # calls that were answered by an error
    seconds: float = 0.0  # how long it waited for its tools and its environment
    # The environment itself, on the rank that ran the episode; it isn't sent or stored.
    environment: Any = None
    error: str | None = None  # why the episode is dropped: it has no reward, and is not trained on

    def to_json(self) -> str:
        """Returns everything but the environment as JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "environment"}
        return json.dumps(fields, ensure_ascii=False, default=str)

    @staticmethod
    def from_json(text: str) -> Episode:
        """Restores what `to_json` wrote."""
        fields = json.loads(text)
        turns = tuple((begin, end) for begin, end in fields.pop("turns"))
        rewards = fields.pop("turn_rewards", None)
        fields["turn_rewards"] = None if rewards is None else tuple(rewards)
        return Episode(prompt_ids=tuple(fields.pop("prompt_ids")), turns=turns, **fields)
