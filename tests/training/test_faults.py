"""Stops and kills at any moment lose nothing: docs/*/reliability.md has the faults and their tests as a table."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys

import pytest

from grpokit.commands.cli import main
from grpokit.runs.checkpoint import checkpoints, verify
from helpers import forked
from helpers.disturbed import same_to_the_byte, wait_for
from helpers.launch import ENVIRONMENT


def moments() -> list[tuple[str, float]]:
    """Ten of them: seeded, and some in each of the phases that a kill could tear."""
    draw = random.Random(2026)
    return [
        *(("rollout", draw.randint(2, 12)) for _ in range(3)),
        *(("backward", draw.randint(1, 6)) for _ in range(3)),
        *(("write", draw.randint(1, 12)) for _ in range(2)),
        *(("seconds", draw.uniform(0.1, 1.5)) for _ in range(2)),
    ]


@pytest.mark.slow
def test_killed_ten_times_and_resumed_to_the_byte(undisturbed, tmp_path):
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    killed = 0
    for phase, count in random.Random(7).sample(moments(), 10):
        done = forked.run("helpers.killed", phase, count, *command, "--resume_from_checkpoint", "auto")
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
        killed += done.returncode != 0
    assert killed >= 9  # a timer may come too late, when the run is at its end
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_a_checkpoint_in_the_midst_of_a_step(undisturbed, tmp_path, signum):
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    command += ["--save_steps", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "grpokit", *command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1, process)
    process.send_signal(signum)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signum
    assert "stopping after this micro-batch, and saving a checkpoint" in said
    (saved,) = checkpoints(tmp_path / "run")
    verify(saved)
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


@pytest.fixture(scope="module")
def three_steps(undisturbed, tmp_path_factory):
    """The first three steps of the undisturbed run: a run to go on with has something to lose."""
    run = tmp_path_factory.mktemp("three") / "run"
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(run)]
    assert main([*command, "--max_steps", "3"]) == 0
    shutil.rmtree(run / "final")
    return run


@pytest.mark.parametrize("pauses", [1, 2, 3, 4, 5, 6, 8, 11])
def test_a_stop_at_any_pause_is_resumed_to_the_byte(
    undisturbed, three_steps, tmp_path, monkeypatch, capsys, pauses
):
    """Every place where a run may stop: before and after rollouts, between micro-batches, in an evaluation."""
    from grpokit.training.run import Run

    shutil.copytree(three_steps, tmp_path / "run")
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    pause, left = Run.pause, [pauses]

    def counted(run):
        left[0] -= 1
        if left[0] == 0:
            run.stop.signum = signal.SIGTERM
        pause(run)

    monkeypatch.setattr(Run, "pause", counted)
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert "stopped by SIGTERM" in capsys.readouterr().out
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")
