"""What goes wrong, what the user sees, and that nothing is lost: docs/*/reliability.md has this as a table."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpokit.checkpoint import checkpoints, verify
from grpokit.cli import main
from grpokit.types import LossOutput, Metric
from helpers.disturbed import (
    SLOW,
    STEPS,
    close_to,
    ended,
    rank_pids,
    same_to_the_byte,
    started,
    steps_done,
    wait_for,
    write_config,
)
from helpers.launch import ENVIRONMENT, rows, torchrun
from helpers.places import HELPERS, OWN_LOSSES, REWARDS, ROOT
from helpers.tiny import make_model_dir

pytestmark = pytest.mark.xdist_group("faults")  # its runs are made once, by one worker


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing happens to, and the directory of its model and data."""
    directory = tmp_path_factory.mktemp("faults")
    command = write_config(
        directory, eval_dataset=str(directory / "train.jsonl"), eval_samples=2, eval_steps=4
    )
    assert main([*command, "--output_dir", str(directory / "undisturbed")]) == 0
    return directory


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
        script = [sys.executable, str(HELPERS / "killed.py"), phase, str(count)]
        done = subprocess.run(
            [*script, *command, "--resume_from_checkpoint", "auto"],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
        killed += done.returncode != 0
    assert killed >= 9  # a timer may come too late, when the run is at its end
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_in_the_midst_of_a_step(undisturbed, tmp_path, signum):
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    command += ["--save_steps", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "grpokit", *command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1, process)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "stopping after this micro-batch, and saving a checkpoint" in said
    (saved,) = checkpoints(tmp_path / "run")
    verify(saved)
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


@pytest.mark.parametrize("pauses", [1, 2, 3, 4, 5, 6, 8, 11])
def test_a_stop_at_any_pause_is_resumed_to_the_byte(undisturbed, tmp_path, monkeypatch, capsys, pauses):
    """Every place where a run may stop: before and after rollouts, between micro-batches, in an evaluation."""
    from grpokit.run import Run

    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    first = main([*command, "--max_steps", "3"])  # from a checkpoint, so that there is something to lose
    assert first == 0
    shutil.rmtree(tmp_path / "run" / "final")
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


# --------------------------------------------------------------------------- what is on the disk


def test_only_so_many_checkpoints_are_kept_and_never_less_than_a_whole_one(undisturbed, tmp_path):
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--save_steps", "1", "--save_total_limit", "2", "--max_steps", "5"]) == 0
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-5"]
    from grpokit.checkpoint import prune

    (tmp_path / "run" / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is not whole"):
        prune(tmp_path / "run", 1)
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-5"]


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        *(
            (name, damage, words)
            for name in ("model.safetensors", "trainer/optimizer.safetensors", "tokenizer.json")
            for damage, words in (
                (Path.unlink, "is missing"),
                (cut_short, "bytes, not"),
                (flip_a_bit, "is not what was written"),
            )
        ),
        ("trainer/state.json", Path.unlink, "No such file"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_offered(
    undisturbed, tmp_path, capsys, name, damage, words
):
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "undisturbed", run)
    damage(run / "checkpoint-8" / name)
    command = [
        "train",
        "--config",
        str(undisturbed / "run.yaml"),
        "--output_dir",
        str(run),
        "--max_steps",
        "9",
    ]
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 2
    said = capsys.readouterr().err
    assert f"{name}" in said
    assert words in said
    assert f"--resume_from_checkpoint {run / 'checkpoint-6'}" in said
    assert rows(run, "metrics.jsonl")[-1]["step"] == 8  # nothing was cut off yet
    assert main([*command, "--resume_from_checkpoint", str(run / "checkpoint-6")]) == 0
    assert [row["step"] for row in rows(run, "metrics.jsonl")] == list(range(1, 10))
    assert (run / "superseded-checkpoint-8").is_dir()  # nothing is deleted, and `auto` won't take it again
    assert checkpoints(run)[-1].name == "checkpoint-8"


def test_a_damaged_state_is_named(undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "undisturbed", run)
    (run / "checkpoint-8" / "trainer" / "state.json").write_text("{")
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(run)]
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 2
    assert "trainer/state.json" in capsys.readouterr().err


def mounted(where: Path, options: str) -> bool:
    """A small file system of its own; False where making one isn't permitted."""
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk(undisturbed, tmp_path, capsys):
    disk = tmp_path / "disk"
    if not mounted(disk, "size=1600k"):
        pytest.skip("NOT TESTED: a full disk (mounting a tmpfs is not permitted here)")
    try:
        command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(disk / "run")]
        assert main([*command, "--save_steps", "1"]) == 1
        said = capsys.readouterr()
        newest = checkpoints(disk / "run")[-1]
        verify(newest)
        assert "could not be written" in said.err
        assert "No space left" in said.err
        assert str(newest) in said.out + said.err
        assert not list((disk / "run").glob(".*.writing"))
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    command[-1] = str(tmp_path / "run")
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


def test_a_read_only_file_system(undisturbed, tmp_path, capsys):
    disk = tmp_path / "disk"
    if not mounted(disk, "ro"):
        pytest.skip("NOT TESTED: a read-only file system (mounting a tmpfs is not permitted here)")
    try:
        command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir"]
        assert main([*command, str(disk)]) == 2
        assert f"--output_dir {disk}: cannot be written to (Read-only file system)" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--seed", "7"), "--seed: 42 → 7: cannot change on resume"),
        (("--prompts_per_step", "6"), "--prompts_per_step: 4 → 6: cannot change"),
        (("--dtype", "float32"), "--dtype: float64 → float32: cannot change"),
    ],
)
def test_what_a_resumed_run_may_not_change(undisturbed, tmp_path, capsys, flags, words):
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "undisturbed", run)
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(run), *flags]
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 2
    assert words in capsys.readouterr().err


def test_a_checkpoint_of_another_run_does_not_cut_this_ones_files(undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "undisturbed", run)
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(run)]
    other = str(undisturbed / "undisturbed" / "checkpoint-4")
    assert main([*command, "--resume_from_checkpoint", other]) == 2
    assert f"--output_dir {run}: is not empty" in capsys.readouterr().err
    assert len(rows(run, "metrics.jsonl")) == STEPS


def test_in_the_midst_of_a_step_its_loss_may_not_change(undisturbed, tmp_path, monkeypatch, capsys):
    from grpokit.run import Run

    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    pause = Run.pause

    def stopping(run):
        if run.unfinished is not None and run.unfinished.done == 1:
            run.stop.signum = signal.SIGTERM
        pause(run)

    monkeypatch.setattr(Run, "pause", stopping)
    assert main(command) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-0-update-1"]
    assert main([*command, "--resume_from_checkpoint", "auto", "--epsilon", "0.1"]) == 2
    assert "--epsilon: None → 0.1: cannot change in the midst of a step" in capsys.readouterr().err
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


def test_what_a_resumed_run_may_change_is_written_down():
    from dataclasses import fields

    from grpokit.config import TrainConfig
    from grpokit.rundir import FREE, OF_OPTIMIZER, STEERING

    names = {field.name for field in fields(TrainConfig)}
    assert names >= FREE | STEERING
    assert not FREE & STEERING
    assert OF_OPTIMIZER < STEERING
    fixed = names - FREE - STEERING
    assert fixed == {
        "model",
        "dataset",
        "dataset_split",
        "max_samples",
        "system_prompt",
        "seed",
        "dtype",
        "lora_r",
        "lora_alpha",
        "lora_target_modules",
        "load_in_4bit",
        "prompts_per_step",
        "max_resample_times",
        "max_prompt_length",
        "long_prompts",
    }
    for page in ("en", "zh"):
        text = (ROOT / "docs" / page / "reliability.md").read_text()
        for name in FREE | STEERING | fixed:
            assert f"`{name}`" in text, f"docs/{page}/reliability.md does not say what {name} may do"


# --------------------------------------------------------------------------- numbers that went wrong


def test_a_number_that_is_not_finite_stops_before_the_weights_move_and_can_be_replayed(tmp_path, capsys):
    command = write_config(tmp_path, learning_rate=1e160, updates_per_step=1, save_steps=0)
    run = tmp_path / "run"
    assert main([*command, "--output_dir", str(run)]) == 2
    said = capsys.readouterr()
    assert "The weights were not touched" in said.err
    (dump,) = (run / "nonfinite").iterdir()
    assert str(dump) in said.err
    (saved,) = checkpoints(run)
    assert saved.name == "checkpoint-0-update-1"
    assert all(torch.isfinite(v).all() for v in load_file(saved / "model.safetensors").values())
    assert main(["replay", str(dump)]) == 1
    said = capsys.readouterr().out
    assert "the very weights of that moment" in said
    assert "the first number that is not finite: output of model.layers.0.self_attn.q_proj" in said
    assert main(["replay", str(dump), "--model", str(tmp_path / "model")]) == 0
    assert "every number is finite here" in capsys.readouterr().out


@pytest.mark.parametrize("lora_save", ["merged", "adapter"])
def test_a_lora_run_can_be_replayed_and_other_weights_are_those_that_were_named(tmp_path, capsys, lora_save):
    options = {"lora_r": 4, "lora_save": lora_save, "updates_per_step": 1, "save_steps": 0}
    command = write_config(tmp_path, learning_rate=1e160, **options)
    run = tmp_path / "run"
    assert main([*command, "--output_dir", str(run)]) == 2
    (dump,) = (run / "nonfinite").iterdir()
    capsys.readouterr()
    assert main(["replay", str(dump)]) == 1
    assert "the very weights of that moment" in capsys.readouterr().out
    assert main(["replay", str(dump), "--model", str(tmp_path / "model")]) == 0
    assert "every number is finite here" in capsys.readouterr().out
    other = tmp_path / "other"  # and not the model of the run
    make_model_dir(other, seed=9)
    damaged = load_file(other / "model.safetensors")
    damaged["model.norm.weight"][:] = torch.nan
    save_file(damaged, other / "model.safetensors", metadata={"format": "pt"})
    assert main(["replay", str(dump), "--model", str(other)]) == 1


def test_so_many_updates_may_be_skipped(tmp_path, monkeypatch, capsys):
    """One token's log-prob is NaN in two updates: they are skipped and counted, the third stops the run."""
    from grpokit.model import Policy

    forward, calls = Policy.forward, [0]

    def sometimes_nan(*args, **kwargs):
        scores, output = forward(*args, **kwargs)
        calls[0] += output is not None
        if output is None or calls[0] not in (
            3,
            4,
            8,
            9,
            12,
            13,
        ):  # each twice: the micro-batch is looked for
            return scores, output
        bad = output.loss * torch.nan
        return scores, LossOutput(bad, {**output.metrics, "loss": Metric.sum(bad)})

    monkeypatch.setattr(Policy, "forward", sometimes_nan)
    command = [
        *write_config(tmp_path, updates_per_step=1, max_steps=5),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main([*command, "--max_skipped_steps", "2"]) == 2
    assert "not finite numbers" in capsys.readouterr().err
    assert [row["skipped_updates"] for row in rows(tmp_path / "run", "metrics.jsonl")][:3] == [0, 1, 0]
    state = json.loads((checkpoints(tmp_path / "run")[-1] / "trainer" / "state.json").read_text())
    assert state["skipped"] + state["unfinished"]["skipped"] == 2


def test_a_dump_that_is_none(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert main(["replay", str(tmp_path / "x.safetensors")]) == 2
    assert "is no dump of a micro-batch" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "y.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err


# --------------------------------------------------------------------------- among ranks


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """A command that trains slowly enough to be disturbed, and its run on two ranks that nothing happened to."""
    directory = tmp_path_factory.mktemp("on-ranks")
    command = ("-m", "grpokit", *write_config(directory, reward_funcs=(SLOW,), save_steps=1))
    done = torchrun(2, *command, "--output_dir", str(directory / "undisturbed"))
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, command


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_job_with_one_message_that_names_it(on_ranks, tmp_path, rank):
    _, command = on_ranks
    process = started(2, *command, "--output_dir", str(tmp_path / "run"))
    wait_for(lambda: steps_done(tmp_path / "run") >= 2, process)
    os.kill(rank_pids(process)[rank], signal.SIGKILL)
    said = ended(process, 30)
    assert process.returncode != 0
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert f"rank {rank} of 2 is gone" in errors[0]


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_within_the_time_out(on_ranks, tmp_path):
    _, command = on_ranks
    process = started(
        2, *command, "--output_dir", str(tmp_path / "run"), "--ddp_timeout", "5", shutdown_timeout="5"
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
def test_torchrun_restarts_from_the_last_checkpoint_by_itself(on_ranks, tmp_path):
    directory, command = on_ranks
    process = started(2, *command, "--output_dir", str(tmp_path / "run"), max_restarts="1")
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, process)
    os.kill(rank_pids(process)[1], signal.SIGKILL)
    said = ended(process, 120)
    assert process.returncode == 0, said
    assert "resuming from" in said
    close_to(tmp_path / "run", directory / "undisturbed")


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_a_checkpoint_that_any_number_of_ranks_resumes(on_ranks, tmp_path):
    directory, command = on_ranks
    process = started(2, *command, "--output_dir", str(tmp_path / "run"), "--save_steps", "0")
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, process)
    os.kill(process.pid, signal.SIGTERM)
    said = ended(process, 60)
    assert "stopped by SIGTERM" in said
    (saved,) = checkpoints(tmp_path / "run")
    assert str(saved) in said
    resumed = main([*command[2:], "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "auto"])
    assert resumed == 0
    close_to(tmp_path / "run", directory / "undisturbed")


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_is_named_once_and_what_was_trained_is_saved(on_ranks, tmp_path):
    _, command = on_ranks
    failing = f"{REWARDS}:fails_on_rank_1"
    done = torchrun(
        2, *command, "--output_dir", str(tmp_path / "run"), "--reward_funcs", failing, "--save_steps", "0"
    )
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(errors) == 1, errors
    assert "rank 1 of 2" in errors[0]
    assert "reward function `fails_on_rank_1` raised KeyError: 'gone'" in errors[0]
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_is_said_once_and_its_micro_batch_written(on_ranks, tmp_path):
    _, command = on_ranks
    run = tmp_path / "run"
    flags = ("--surrogate", f"{OWN_LOSSES}:nan_on_rank_1", "--loss_type", "grpo")
    done = torchrun(2, *command, "--output_dir", str(run), *flags)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    (dump,) = (run / "nonfinite").iterdir()
    assert "-rank-1-" in dump.name
    assert str(dump) in errors[0]
    assert "-update-" in checkpoints(run)[-1].name  # together, with the weights of that moment


@pytest.mark.slow
def test_a_mistake_is_said_once(on_ranks, tmp_path):
    _, command = on_ranks
    for flags in (
        ("--prompts_per_step", "0"),
        ("--dataset", str(tmp_path / "none.jsonl")),
        ("--model", str(tmp_path)),
    ):
        done = torchrun(2, *command, "--output_dir", str(tmp_path / "run"), *flags)
        assert done.returncode != 0
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, done.stderr
        assert flags[0] in errors[0]
