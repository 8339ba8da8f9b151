"""Runs that are stopped where a test wants it, and what they have in common with a run that nothing happened to."""

from __future__ import annotations

import signal
from pathlib import Path

from grpokit.training.run import Run
from helpers.launch import rows

STOPPED = 128 + signal.SIGTERM


def stop_when(monkeypatch, due) -> None:
    """SIGTERM's note at the first pause of a run for which `due(run)` holds."""
    pause = Run.pause

    def stopping(run):
        if due(run):
            run.stop.signum = signal.SIGTERM
        pause(run)

    monkeypatch.setattr(Run, "pause", stopping)


def in_update(done: int, step: int = 0):
    return lambda run: run.state.step == step and run.unfinished is not None and run.unfinished.done == done


def same_bytes(run: Path, expected: Path) -> None:
    ours, theirs = ((r / "final" / "model.safetensors").read_bytes() for r in (run, expected))
    assert ours == theirs
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert rows(run, name) == rows(expected, name)
