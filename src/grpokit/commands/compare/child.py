"""A run of a comparison: `grpokit train`, which writes a checkpoint and ends once the comparison that started it is gone.

python -m grpokit.commands.compare.child --config FILE     standard input: a pipe that the comparison holds open
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from ..cli import main


def stop_at_end_of_input() -> None:
    """Waits until nobody holds the other end of standard input, and asks this process to stop."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    sys.exit(main(["train", *sys.argv[1:]]))
