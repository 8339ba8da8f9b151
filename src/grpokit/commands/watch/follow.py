"""Reads files that a run is still writing: only what is new, and from the start again where a file was rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MARK = 1024  # bytes before the offset that must still be the same, or the file was rewritten


def inside(folder: Path, name: str) -> Path | None:
    """Returns the path of a file or folder of a run, None where there is none.

    Raises:
        ValueError: it leads out of the run's directory, by a symbolic link or by its name.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: leads out of the run's directory and is not read")
    return path if path.is_file() or path.is_dir() else None


class GrowingFile:
    """The lines of a file that is appended to. A last line without its end is left for the next time.

    A resumed run replaces its files by shorter ones: then everything is read again, and `restarts` goes up.

    Example: `for offset, line in GrowingFile(run, "metrics.jsonl").new_lines(): ...`
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.offset = 0  # bytes read so far
        self.restarts = 0
        self._mark = b""

    def is_rewritten(self) -> bool:
        """Checks whether the file is another one than before; if so, reading begins at its start again."""
        path = inside(self.folder, self.name)
        if self.offset == 0:
            return False
        if path is not None and path.is_file():
            with path.open("rb") as file:
                file.seek(self.offset - len(self._mark))
                if file.read(len(self._mark)) == self._mark:
                    return False
        self.offset, self._mark = 0, b""
        self.restarts += 1
        return True

    def new_lines(self) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, line) of each complete line that was not read before. Call `is_rewritten` first.

        Raises:
            ValueError: the file leads out of the run's directory.
            OSError: it can't be read.
        """
        path = inside(self.folder, self.name)
        if path is None or not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start = self.offset
                self.offset += len(line)
                self._mark = (self._mark + line[-MARK:])[-MARK:]
                yield start, line

    def read_line(self, offset: int, length: int) -> bytes:
        """Returns the bytes of a line that `new_lines` has yielded."""
        path = inside(self.folder, self.name)
        if path is None:
            return b""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
