"""Starting real processes: torchrun and its agents, and reading what a run has left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from grpokit.runs.metrics import is_of_machine
from helpers.places import TESTS

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def launcher(ranks: int, *flags: str) -> list[str]:
    """A torchrun that starts so many ranks on this machine, with its own `flags`."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *flags]


def torchrun(ranks: int, *command: str, timeout: float = 600, **options) -> subprocess.CompletedProcess:
    """Run `command` (a script or -m module with its arguments) on so many ranks of this machine."""
    start = [*launcher(ranks, "--standalone"), *command]
    return subprocess.run(start, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, **options)


def rows(run: Path, name: str) -> list[dict]:
    """A run's file of JSON lines, without what only time decides."""
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not is_of_machine(k)} for line in lines]
