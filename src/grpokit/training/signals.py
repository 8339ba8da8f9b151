"""SIGTERM and Ctrl-C: noted when they come, obeyed between two micro-batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A run stops on request, between two micro-batches or two batches of samples; nothing is wrong."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell has it."""
        return 128 + self.signum


class StopRequest:
    """Whether a signal has asked this process to stop, and which."""

    def __init__(self) -> None:
        self.signum = 0

    def __bool__(self) -> bool:
        return self.signum != 0

    @contextmanager
    def listening(self, told: Callable[[str], None]) -> Iterator[StopRequest]:
        """Note SIGTERM and SIGINT while inside, and tell the user so; a second Ctrl-C stops at once."""

        def note(signum: int, frame: FrameType | None) -> None:
            if self and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if not self:
                self.signum = signum
                name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
                told(f"{name}: stopping after this micro-batch, and saving a checkpoint")

        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
