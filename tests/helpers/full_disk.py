"""Ranks whose disk is full: training ends in an error, and this moment's checkpoint is elsewhere.

torchrun --nproc-per-node 2 -m helpers.full_disk DIR      DIR/run.yaml is there; the checkpoint goes to DIR/elsewhere/
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import grpokit.runs.checkpoint
import grpokit.training.rescue
from grpokit import GRPOTrainer
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import load_yaml
from grpokit.runs.recorder import Recorder

CALLED = "the callback on_save was called"


class Saved:
    """A callback that says that it was called."""

    def on_save(self, step, path):
        print(CALLED, step, flush=True)


def main(directory: Path) -> None:
    """Trains until the disk is full, in step 2."""
    write, atomically = Recorder.write_step, grpokit.runs.checkpoint.atomically

    def write_step(recorder, step, *arguments):
        if step == 2 and recorder.metrics_file.file is not None:  # the main rank alone writes
            raise OSError(errno.ENOSPC, "No space left on device")
        write(recorder, step, *arguments)

    def into_a_full_disk(path, write_it):
        if directory / "run" in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        atomically(path, write_it)

    Recorder.write_step = write_step
    grpokit.runs.checkpoint.atomically = into_a_full_disk
    grpokit.training.rescue.make_rescue_directory = lambda output, size: str(directory / "elsewhere")
    GRPOTrainer(args=load_yaml(TrainConfig, str(directory / "run.yaml")), callbacks=[Saved()]).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
