"""Runs that are stopped where a test wants it, and what they have in common with a run that nothing happened to."""

from __future__ import annotations

import signal
from pathlib import Path

from grpokit.commands.cli import main
from grpokit.policy.learn import StepProgress
from grpokit.training import loop
from grpokit.training.run import Run
from helpers.launch import rows

STOPPED = 128 + signal.SIGTERM


def stop_when(monkeypatch, due) -> None:
    """SIGTERM's note at the first pause for which `due(run, progress)` holds; progress is None outside of learning."""
    pause, learn = Run.pause, loop.learn
    under_way: list[StepProgress] = []

    def learning(policy, reference, progress, *rest):
        under_way.append(progress)
        try:
            return learn(policy, reference, progress, *rest)
        finally:
            under_way.pop()

    def stopping(run):
        if due(run, under_way[-1] if under_way else None):
            run.stop.signum = signal.SIGTERM
        pause(run)

    monkeypatch.setattr(loop, "learn", learning)
    monkeypatch.setattr(Run, "pause", stopping)


def in_update(done: int, step: int = 0):
    return lambda run, progress: run.state.step == step and progress is not None and progress.done == done


def same_bytes(run: Path, expected: Path) -> None:
    ours, theirs = ((r / "final" / "model.safetensors").read_bytes() for r in (run, expected))
    assert ours == theirs
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert rows(run, name) == rows(expected, name)


def goes_on_from_an_update(monkeypatch, command: list[str], directory: Path) -> None:
    """A run that is stopped in its first step, after an update, and resumed, ends as one that nothing happened to.

    Args:
        monkeypatch: pytest's.
        command: the run's command; its last argument, the output directory, is missing.
        directory: where both runs go.
    """
    assert main([*command, str(directory / "expected")]) == 0
    with monkeypatch.context() as patched:
        stop_when(patched, in_update(1))
        assert main([*command, str(directory / "run")]) == STOPPED
    assert main([*command, str(directory / "run"), "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(directory / "run", directory / "expected")
