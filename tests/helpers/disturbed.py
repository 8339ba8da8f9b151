"""Runs that are disturbed: signals, dead ranks, full disks; and the comparison with a run that nothing happened to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from grpokit.config.yaml import to_yaml
from helpers.launch import ENVIRONMENT, launcher, rows
from helpers.places import REWARDS
from helpers.tiny import tiny_config

STEPS = 8
SLOW = f"{REWARDS}:slow_digits_in_order"


def write_config(directory: Path, **changes) -> tuple[str, ...]:
    """The command that trains, without the output directory."""
    settings = {"max_steps": STEPS, "save_steps": 2, "updates_per_step": 2, "log_completions": 2}
    config = tiny_config(directory, **(settings | changes))
    (directory / "run.yaml").write_text(to_yaml(config))
    return ("train", "--config", str(directory / "run.yaml"))


def same_to_the_byte(run: Path, expected: Path) -> None:
    ours, theirs = (r / "final" / "model.safetensors" for r in (run, expected))
    assert ours.read_bytes() == theirs.read_bytes()
    assert [row["step"] for row in rows(run, "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert rows(run, "metrics.jsonl") == rows(expected, "metrics.jsonl")
    assert rows(run, "evaluations.jsonl") == rows(expected, "evaluations.jsonl")
    assert rows(run, "completions.jsonl") == rows(expected, "completions.jsonl")


def wait_for(ready, process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.01)


def started(ranks: int, *command: str, **flags: str) -> subprocess.Popen:
    own = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return subprocess.Popen(
        [*launcher(ranks, "--standalone", *own), *command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rank_pids(process: subprocess.Popen) -> dict[int, int]:
    """Rank → process id, of a torchrun's workers."""
    found = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in children:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(v[5:]): int(pid) for v in variables if v.startswith(b"RANK=")}
    return found


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def ended(process: subprocess.Popen, seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def close_to(run: Path, expected: Path) -> None:
    ours, theirs = (load_file(r / "final" / "model.safetensors") for r in (run, expected))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-10)
    assert [row["step"] for row in rows(run, "metrics.jsonl")] == list(range(1, STEPS + 1))
