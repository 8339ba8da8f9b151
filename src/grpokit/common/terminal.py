"""A console that takes any text, and that a run outlives: a closed pipe or terminal ends the output, never the run."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

from rich.console import Console


class ToughStream:
    """A text stream that never raises: what its encoding lacks becomes `?`, and what can't be written is dropped.

    Example:
        >>> import io
        >>> ascii_file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        >>> ToughStream(ascii_file).write("3 × 4")
        5
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text` as far as it can be written. Returns its length."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            plain = text.encode(encoding, "replace").decode(encoding)
            self.write(plain if plain != text else text.encode("ascii", "replace").decode("ascii"))
        except BlockingIOError:  # a full pipe of a parent that doesn't wait; it may be read later
            pass
        except (OSError, ValueError):  # a closed pipe, a terminal that is gone, a closed file
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flushes as far as it can."""
        try:
            self._stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Points the stream's descriptor at nothing, so that its buffer can be flushed when Python ends."""
        try:
            own = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
        except (OSError, ValueError):  # it has no descriptor
            return
        try:
            os.dup2(nowhere, own)
        finally:
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class PlainConsole(Console):
    """rich's console without markup: a path such as `runs[v2]` is printed as it is. Styles are given as `Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def file(self) -> IO[str]:
        """The stream that is printed to."""
        stream: Any = ToughStream(Console.file.fget(self))  # pyright: ignore[reportOptionalCall]
        return stream

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        """Prints to `new_file` from now on."""
        self._file = new_file


def toughen_output() -> None:
    """Makes this process's own stdout and stderr replace the characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def write_error(text: str) -> None:
    """Prints to stderr, where there is one."""
    if sys.stderr is not None:
        stream = ToughStream(sys.stderr)
        stream.write(text + "\n")
        stream.flush()
