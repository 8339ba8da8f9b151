"""Faults in the files of a run: damage, a full disk, another run's files."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import grpokit.training.recording
import grpokit.training.run
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.runs.checkpoint import checkpoints, verify
from grpokit.runs.recorder import Recorder
from helpers import forked
from helpers.disturbed import STEPS, same_to_the_byte
from helpers.full_disk import CALLED
from helpers.launch import rows
from helpers.places import ROOT
from helpers.stops import in_update, stop_when
from helpers.tiny import tiny_config


def test_only_so_many_checkpoints_are_kept_and_never_less_than_a_whole_one(undisturbed, tmp_path):
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--save_steps", "1", "--save_total_limit", "2", "--max_steps", "5"]) == 0
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-5"]
    from grpokit.runs.checkpoint import prune

    (tmp_path / "run" / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is incomplete or corrupt"):
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


def test_a_full_disk_loses_nothing_and_is_said(undisturbed, tmp_path, capsys):
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


# What is being written when the disk is full: the function, its first call that fails, and flags that make a run call it.
EVALUATED = ("--eval_steps", "3", "--eval_samples", "2", "--eval_dataset")
WRITES = {
    "metrics.jsonl": (Recorder, "write_step", 2, ()),
    "a batch": (grpokit.training.recording, "write_batch", 2, ("--record_batches", "3")),
    "evaluations.jsonl": (Recorder, "write_evaluation", 2, EVALUATED),
    "best/": (grpokit.training.run, "save_model", 1, EVALUATED),
    "final/": (grpokit.training.run, "save_model", 1, ()),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_a_full_disk_has_no_room_for_is_saved_elsewhere(
    undisturbed, tmp_path, monkeypatch, capsys, what
):
    """Whatever was being written: not a step is lost, though no checkpoint was written before."""
    disk = tmp_path / "disk"
    if not mounted(disk, "size=1600k"):
        pytest.skip("NOT TESTED: a full disk (mounting a tmpfs is not permitted here)")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    holder, name, fails_at, flags = WRITES[what]
    if flags == EVALUATED:
        flags = (*flags, str(undisturbed / "train.jsonl"))
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(disk / "run")]
    command = [*command, "--save_steps", "0", *flags]
    write, calls = getattr(holder, name), []

    def into_a_full_disk(*arguments, **options):
        calls.append(1)
        if len(calls) == fails_at:
            with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(512))
        return write(*arguments, **options)

    monkeypatch.setattr(holder, name, into_a_full_disk)
    try:
        assert main(command) == 1
        said = capsys.readouterr()
        assert "No space left" in said.err
        (saved,) = tmp_path.glob("run-*/checkpoint-*")
        verify(saved)
        assert (
            f"saved {saved} instead, in a directory for temporary files; move it to {disk / 'run'}"
            in said.out
        )
        monkeypatch.setattr(holder, name, write)
        (disk / "filler").unlink()
        shutil.move(saved, disk / "run")
        assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
        ends = [r / "final" / "model.safetensors" for r in (disk / "run", undisturbed / "undisturbed")]
        assert ends[0].read_bytes() == ends[1].read_bytes()
        assert [row["step"] for row in rows(disk / "run", "metrics.jsonl")] == list(range(1, STEPS + 1))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_full_disk_loses_no_step_of_many_ranks_either(tmp_path):
    """Only the main rank writes: the others learn of it, and all of them gather this moment's checkpoint."""
    config = tiny_config(tmp_path)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    done = forked.run("helpers.full_disk", tmp_path, ranks=2, timeout=120)
    assert done.returncode != 0
    assert "No space left" in done.stderr
    saved = tmp_path / "elsewhere" / "checkpoint-1-update-2"
    verify(saved)
    assert f"saved {saved} instead" in done.stdout
    assert done.stdout.count(f"{CALLED} 1") == 2  # on both ranks, and only for the one that was written


def test_a_read_only_file_system_is_refused_at_the_start(undisturbed, tmp_path, capsys):
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
def test_a_resumed_run_refuses_changes_that_make_it_another_run(undisturbed, tmp_path, capsys, flags, words):
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
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    stop_when(monkeypatch, in_update(1))
    assert main(command) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-0-update-1"]
    assert main([*command, "--resume_from_checkpoint", "auto", "--epsilon", "0.1"]) == 2
    assert "--epsilon: None → 0.1: cannot change within a step" in capsys.readouterr().err
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_to_the_byte(tmp_path / "run", undisturbed / "undisturbed")


def test_every_option_is_documented_as_free_or_fixed_on_resume():
    from dataclasses import fields

    from grpokit.config.options import TrainConfig
    from grpokit.runs.directory import FREE, OF_OPTIMIZER, STEERING

    names = {field.name for field in fields(TrainConfig)}
    assert names >= FREE | STEERING
    assert not FREE & STEERING
    assert OF_OPTIMIZER < STEERING
    fixed = names - FREE - STEERING
    assert fixed == {
        "model",
        "dataset",
        "shuffle",
        "optim",
        "dataset_split",
        "prompt_column",
        "sampler_order",
        "lazy_tokenize",
        "max_samples",
        "system_prompt",
        "chat_template",
        "chat_template_kwargs",
        "generation_prefix",
        "seed",
        "dtype",
        "lora_r",
        "lora_alpha",
        "lora_target_modules",
        "use_rslora",
        "use_dora",
        "lora_modules_to_save",
        "load_in_4bit",
        "freeze_parameters",
        "trainable_parameters",
        "sync_ref_model",
        "prompts_per_step",
        "max_resample_times",
        "max_prompt_length",
        "long_prompts",
    }
    for page in ("en", "zh"):
        text = (ROOT / "docs" / page / "reliability.md").read_text()
        for name in FREE | STEERING | fixed:
            assert f"`{name}`" in text, f"docs/{page}/reliability.md does not say what {name} may do"
