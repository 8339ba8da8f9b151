"""Notes signals that ask a run to stop when they come; the run obeys between two micro-batches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..parallel import World

# SIGHUP: the terminal was closed. SIGUSR1, SIGUSR2: SLURM's warning before the time limit. Windows has none of these.
ASKED = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


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
    """Remembers whether a signal has asked this process to stop, and which one."""

    def __init__(self) -> None:
        self.signum = 0

    def is_set(self) -> bool:
        """Tells whether a signal has come."""
        return self.signum != 0

    def raise_if_set(self, world: World) -> None:
        """Raises Stopped on every rank where a signal has come to any of them. All ranks call it."""
        signum = world.largest(self.signum)
        if signum:
            raise Stopped(signum)

    @contextmanager
    def listening(self, told: Callable[[str], None]) -> Iterator[StopRequest]:
        """Notes the signals of ASKED while inside, and tells the user so; a second Ctrl-C stops at once.

        Signals other than SIGTERM and SIGINT are left alone where they have a handler already, such as that of a tool that
        submits jobs again, or are ignored, as SIGHUP under nohup. Python can note signals on its main thread only; on
        another thread, they keep what they do.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def note(signum: int, frame: FrameType | None) -> None:
            if self.is_set() and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.is_set():
                self.signum = signum
                name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
                told(f"{name}: stopping after this micro-batch, and saving a checkpoint")

        always = (signal.SIGTERM, signal.SIGINT)
        noted = [s for s in ASKED if s in always or signal.getsignal(s) is signal.SIG_DFL]
        before = {s: signal.signal(s, note) for s in noted}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
