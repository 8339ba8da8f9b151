"""What answers the model in an episode, how one is closed whatever happens, and how some are opened to see their prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..common.waiting import Waiting, together
from ..types import EpisodeFailed, Messages, NoRoom

PATIENCE = 600.0  # seconds that episodes wait for room while none can begin
CLOSING = 10.0  # seconds that the closing of episodes that are given up may take


class OtherSide(Protocol):
    """Answers the model's turns in one episode. An environment never sees the engine."""

    prompt_ids: tuple[int, ...]
    messages: Messages
    added: Messages | None
    ending: Any
    calls: Any
    failures: int
    turn_rewards: list[float]
    seconds: float
    environment: Any

    @property
    def kind_name(self) -> str | None:
        """The class of the environment; None without one."""
        ...

    def open(self) -> Waiting[None]:
        """Begins the episode, and finds its prompt. Raises NoRoom where it can't begin now, but will later."""
        ...

    def reply(self, ids: Sequence[int], text: str, cut: bool, room: int) -> Waiting[list[int]]:
        """Answers a turn.

        Args:
            ids: the turn's tokens.
            text: what they say, without the end token.
            cut: whether the turn was cut by its length.
            room: tokens that the episode may still have.

        Returns:
            The tokens that follow; none where the episode ends.
        """
        ...

    def final_reward(self) -> Waiting[float | None]:
        """Returns the environment's own reward, where it has one."""
        ...

    def close(self) -> Waiting[None]:
        """Ends the episode, whatever has happened. Does nothing the second time."""
        ...


def close_all(others: Sequence[OtherSide]) -> None:
    """Closes episodes that are given up, for some seconds at most. What one of them raises is not reported."""
    until = time.monotonic() + CLOSING

    def closing(other: OtherSide) -> Waiting[None]:
        with suppress(EpisodeFailed):
            yield from other.close()

    with suppress(InterruptedError):  # a call hangs: its thread is abandoned
        together([closing(other) for other in others], stop=lambda: time.monotonic() > until)


def open_each(others: Sequence[Callable[[], OtherSide]]) -> list[OtherSide]:
    """Opens episodes one after another, only to see their prompts, and closes each.

    Args:
        others: functions that make an `OtherSide`. If `open` raises NoRoom, the function is called again later.

    Returns:
        The closed episodes.

    Raises:
        EpisodeFailed: one of them fails.
        ValueError: there is no room for one of them for `PATIENCE` seconds.
    """
    opened: list[OtherSide] = []
    for make in others:
        until = time.monotonic() + PATIENCE
        while True:
            other = make()
            try:
                together([other.open()])
            except NoRoom as full:
                if time.monotonic() > until:
                    raise ValueError(f"{full}; it had no room for {PATIENCE:g} seconds") from full
            else:
                opened.append(other)
                break
            finally:
                close_all([other])
            time.sleep(1.0)
    return opened
