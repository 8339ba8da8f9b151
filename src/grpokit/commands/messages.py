"""Messages of all commands: other libraries are silenced, and an error is one line."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ..common.terminal import write_error

PATIENCE = 10.0  # seconds; torchrun ends all ranks as soon as one has ended


def quiet() -> None:
    """Silences transformers' bars and advice, which would bury the run's own lines and warnings."""
    import logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


def fail(error: Exception | str, *notes: str) -> int:
    """Prints the error and returns the exit code.

    The other ranks wait first: an error that every rank finds is printed by rank 0 alone, whose exit ends the job.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank and isinstance(error, Exception):
        time.sleep(PATIENCE)
        error = f"rank {rank}: {error}"  # nobody ended this rank, so rank 0 has no error
    write_error("\n".join([f"error: {error}", *notes]))
    return 2


def tell(text: str) -> None:
    """Prints a line from within a signal handler, where print may not be called."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())
