"""A script in the place of a run of a comparison: it writes what a run writes, in a moment.

python -m helpers.quick_training FILE     FILE: the run's configuration

A step adds 1 to the number in its checkpoint. `learning_rate` is the score; above 1 the run fails. A file `hold` beside the
comparison's runs holds every run after its first step, until SIGTERM, at which it writes a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml


def stopped(*_: object) -> None:
    raise InterruptedError


def main(file: Path) -> None:
    signal.signal(signal.SIGTERM, stopped)
    config = yaml.safe_load(file.read_text())
    output = Path(config["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    saved = output / "checkpoint-1" / "trainer"
    first = 1 + (config["resume_from_checkpoint"] == "auto" and saved.exists())
    print(f"starts at step {first} with {os.environ['OMP_NUM_THREADS']} threads", flush=True)
    (output / "config.yaml").write_text(file.read_text())
    if config["learning_rate"] > 1:
        print("error: --learning_rate: is above 1", flush=True)
        sys.exit(2)
    try:
        for step in range(first, config["max_steps"] + 1):
            with (output / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps({"step": step, "reward": config["learning_rate"]}) + "\n")
            while (output.parent.parent / "hold").exists():
                time.sleep(0.01)
    except InterruptedError:
        saved.mkdir(parents=True)
        sys.exit(143)
    (output / "final").mkdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
