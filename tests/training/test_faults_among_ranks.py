"""A rank that dies, hangs, fails or is interrupted: one message, and nothing is lost."""

from __future__ import annotations

import os
import signal

import pytest

from grpokit.commands.cli import main
from grpokit.runs.checkpoint import checkpoints
from helpers import forked
from helpers.disturbed import SLOW, close_to, ended, rank_pids, started, steps_done, wait_for, write_config
from helpers.launch import torchrun
from helpers.places import OWN_LOSSES, REWARDS


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A command that trains slowly enough to be disturbed."""
    directory = tmp_path_factory.mktemp("on-ranks")
    return ("grpokit", *write_config(directory, reward_funcs=(SLOW,), save_steps=1))


@pytest.fixture(scope="module")
def expected(command, tmp_path_factory):
    """The command's run on two ranks that nothing happened to."""
    run = tmp_path_factory.mktemp("expected") / "run"
    done = forked.run(*command, "--output_dir", run, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_dies_ends_the_job_with_one_message_that_names_it(command, tmp_path, rank):
    process = started(2, "-m", *command, "--output_dir", str(tmp_path / "run"))
    wait_for(lambda: steps_done(tmp_path / "run") >= 2, process)
    os.kill(rank_pids(process)[rank], signal.SIGKILL)
    said = ended(process, 30)
    assert process.returncode != 0
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert f"rank {rank} of 2 is gone" in errors[0]


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_within_the_time_out(command, tmp_path):
    process = started(
        2, "-m", *command, "--output_dir", str(tmp_path / "run"), "--ddp_timeout", "5", shutdown_timeout="5"
    )
    wait_for(lambda: steps_done(tmp_path / "run") >= 2, process)
    frozen = rank_pids(process)[1]
    os.kill(frozen, signal.SIGSTOP)
    said = ended(process, 60)
    assert process.returncode != 0
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert "rank 1 of 2 is gone" in errors[0]


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint_by_itself(command, expected, tmp_path):
    process = started(2, "-m", *command, "--output_dir", str(tmp_path / "run"), max_restarts="1")
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, process)
    os.kill(rank_pids(process)[1], signal.SIGKILL)
    said = ended(process, 120)
    assert process.returncode == 0, said
    assert "resuming from" in said
    close_to(tmp_path / "run", expected)


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_a_checkpoint_that_any_number_of_ranks_resumes(
    command, expected, tmp_path
):
    process = started(2, "-m", *command, "--output_dir", str(tmp_path / "run"), "--save_steps", "0")
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, process)
    os.kill(process.pid, signal.SIGTERM)
    said = ended(process, 60)
    assert "stopped by SIGTERM" in said
    (saved,) = checkpoints(tmp_path / "run")
    assert str(saved) in said
    resumed = main([*command[1:], "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "auto"])
    assert resumed == 0
    close_to(tmp_path / "run", expected)


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_is_named_once_and_what_was_trained_is_saved(command, tmp_path):
    failing = f"{REWARDS}:fails_on_rank_1"
    flags = ("--reward_funcs", failing, "--save_steps", "0")
    done = forked.run(*command, "--output_dir", tmp_path / "run", *flags, ranks=2)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(errors) == 1, errors
    assert "rank 1 of 2" in errors[0]
    assert "reward function `fails_on_rank_1` raised KeyError: 'gone'" in errors[0]
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_is_said_once_and_its_micro_batch_written(command, tmp_path):
    run = tmp_path / "run"
    flags = ("--surrogate", f"{OWN_LOSSES}:nan_on_rank_1", "--loss_type", "grpo")
    done = forked.run(*command, "--output_dir", run, *flags, ranks=2)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    (dump,) = (run / "nonfinite").iterdir()
    assert "-rank-1-" in dump.name
    assert str(dump) in errors[0]
    assert "-update-" in checkpoints(run)[-1].name  # together, with the weights of that moment


@pytest.mark.slow
def test_a_mistake_is_said_once(command, tmp_path):
    for flags in (
        ("--prompts_per_step", "0"),
        ("--dataset", str(tmp_path / "none.jsonl")),
        ("--model", str(tmp_path)),
    ):
        done = torchrun(2, "-m", *command, "--output_dir", str(tmp_path / "run"), *flags)
        assert done.returncode != 0
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, done.stderr
        assert flags[0] in errors[0]
