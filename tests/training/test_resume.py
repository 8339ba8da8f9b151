"""All that a step in its midst needs comes back, and what a stop or an error leaves is what it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import grpokit.policy.learn
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.policy.policy import Policy
from grpokit.runs.checkpoint import checkpoints
from grpokit.training.signals import StopRequest
from grpokit.types import LossOutput, Metric
from helpers.launch import rows
from helpers.stops import STOPPED, in_update, same_bytes, stop_when
from helpers.tiny import make_model_dir, tiny_config


def command_for(directory: Path, **changes) -> list[str]:
    config = tiny_config(directory, **({"updates_per_step": 2} | changes))
    (directory / "run.yaml").write_text(to_yaml(config))
    return ["train", "--config", str(directory / "run.yaml"), "--output_dir"]


def nan_at(monkeypatch, *calls: int) -> None:
    """The loss of these training forwards, counted from 1, is NaN."""
    forward, count = Policy.forward, [0]

    def sometimes_nan(*args, **kwargs):
        scores, output = forward(*args, **kwargs)
        count[0] += output is not None
        if output is None or count[0] not in calls:
            return scores, output
        bad = output.loss * torch.nan
        return scores, LossOutput(bad, {**output.metrics, "loss": Metric.sum(bad)})

    monkeypatch.setattr(Policy, "forward", sometimes_nan)


CASES = {
    "a reference": {"beta": 0.3},
    # chosen by chance among many, keyed by the number of the optimizer step
    "a selection by chance": {
        "loss_type": "clip_cov",
        "loss_kwargs": ("cov_low=-1e9", "cov_high=1e9", "cov_ratio=0.3"),
    },
    "a part of the distribution": {"top_p": 0.8, "top_k": 9, "min_p": 0.01, "min_completion_length": 2},
    "rejected tokens": {
        "loss_type": "grpo",
        "correction_mode": "mask",
        "correction_low": 0.9999999,
        "correction_high": 1.0000001,
        "rejected_tokens": "drop",
        "dtype": "float32",
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("done", [1, 3])
def test_a_step_goes_on_from_its_midst(tmp_path, monkeypatch, case, done):
    """The second step is stopped before its second update, and in its second pass."""
    command = command_for(tmp_path, **CASES[case])
    assert main([*command, str(tmp_path / "expected")]) == 0
    stop_when(monkeypatch, in_update(done, step=1))
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path / "run")] == [f"checkpoint-1-update-{done}"]
    assert main([*command, str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(tmp_path / "run", tmp_path / "expected")


def test_a_model_that_is_stored_in_bfloat16_goes_on_to_the_byte(tmp_path, monkeypatch):
    model = make_model_dir(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    stored = {name: value.bfloat16() for name, value in load_file(model / "model.safetensors").items()}
    save_file(stored, model / "model.safetensors", metadata={"format": "pt"})
    command = command_for(tmp_path, dtype="float32")
    assert main([*command, str(tmp_path / "expected")]) == 0
    stop_when(monkeypatch, in_update(2, step=1))
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    monkeypatch.undo()
    assert main([*command, str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(tmp_path / "run", tmp_path / "expected")
    final = tmp_path / "run" / "final"
    assert {v.dtype for v in load_file(final / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((final / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("step", [0, 1])
def test_skipped_updates_are_counted_over_a_stop(tmp_path, monkeypatch, capsys, step):
    """One is skipped before the stop, in the stopped step or in the one before it; the next one stops the run."""
    command = command_for(tmp_path, num_iterations=1, save_steps=0)
    nan_at(monkeypatch, 1, 2)  # the first update, and again where its micro-batch is looked for
    stop_when(monkeypatch, in_update(1, step=step))
    assert main([*command, str(tmp_path / "run"), "--max_skipped_steps", "1"]) == STOPPED
    monkeypatch.undo()
    nan_at(monkeypatch, 1, 2)
    capsys.readouterr()
    resume = ["--resume_from_checkpoint", "auto", "--max_skipped_steps"]
    assert main([*command, str(tmp_path / "run"), *resume, "1"]) == 2
    assert "not finite numbers" in capsys.readouterr().err
    nan_at(monkeypatch, 1, 2)
    assert main([*command, str(tmp_path / "run"), *resume, "2"]) == 0
    assert sum(row["skipped_updates"] for row in rows(tmp_path / "run", "metrics.jsonl")) == 2


def test_a_skipped_first_update_is_scored_for_the_passes_to_come(tmp_path, monkeypatch):
    """`old` of the second pass is then of the policy that was skipped, and not of one that has moved."""
    command = command_for(tmp_path, max_steps=1, beta=0.0)
    nan_at(monkeypatch, 1, 2)
    started, seen = {}, {}
    optimize = grpokit.policy.learn.optimize

    def spy(policy, update, loss, optimizer, how, step):
        if step.done == 0:
            started.update(grpokit.policy.learn.score(policy, update.samples, how))
        if step.done == 2:
            seen.update({row.index: row.old_logps for row in update.samples})
        return optimize(policy, update, loss, optimizer, how, step)

    monkeypatch.setattr(grpokit.policy.learn, "optimize", spy)
    assert main([*command, str(tmp_path / "run"), "--max_skipped_steps", "1"]) == 0
    assert seen.keys() == started.keys()
    for index, old in seen.items():
        if old is not None:  # a dead row
            torch.testing.assert_close(old, started[index], rtol=0, atol=1e-13)
    assert any(old is not None for old in seen.values())


def test_weights_in_the_midst_of_an_optimizer_step_are_not_saved(tmp_path, monkeypatch, capsys):
    command = command_for(tmp_path, save_steps=1)
    step, calls = torch.optim.AdamW.step, [0]

    def fails(self, *args, **kwargs):
        calls[0] += 1
        if calls[0] == 6:
            raise RuntimeError("out of memory")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        main([*command, str(tmp_path / "run")])
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert "saved" not in capsys.readouterr().out


@pytest.mark.parametrize("spelling", [Path.absolute, lambda path: Path(os.path.relpath(path))])
def test_newer_checkpoints_are_set_aside_however_the_older_one_is_spelled(tmp_path, capsys, spelling):
    command = command_for(tmp_path, save_steps=1)
    run = tmp_path / "run"
    assert main([*command, str(run)]) == 0
    older = str(spelling(run / "checkpoint-1"))
    for names in (
        ["superseded-checkpoint-2"],
        ["superseded-checkpoint-2", "superseded-superseded-checkpoint-2"],
    ):
        assert main([*command, str(run), "--resume_from_checkpoint", older]) == 0
        assert sorted(p.name for p in run.glob("superseded-*checkpoint-2")) == sorted(names)
        assert checkpoints(run)[-1].name == "checkpoint-3"
    assert "set aside" in capsys.readouterr().out


def test_a_start_from_an_older_one_that_fails_has_set_the_newer_ones_aside(tmp_path, monkeypatch):
    """So that torchrun's restart, which takes the newest, goes the same way."""
    command = command_for(tmp_path, save_steps=1)
    run = tmp_path / "run"
    assert main([*command, str(run)]) == 0
    (tmp_path / "train.jsonl").rename(tmp_path / "elsewhere.jsonl")
    older = ["--resume_from_checkpoint", str(run / "checkpoint-1")]
    assert main([*command, str(run), *older]) == 2
    (tmp_path / "elsewhere.jsonl").rename(tmp_path / "train.jsonl")
    shutil.copytree(run, tmp_path / "again")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main([*command, str(run), *older]) == 0
    assert [row["step"] for row in rows(run, "metrics.jsonl")] == [1, 2, 3]
    assert [p.name for p in checkpoints(run)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--no-drop_dead_rows",),
            "--drop_dead_rows: True → False: cannot change within a step",
        ),
        (("--max_steps", "1"), "was saved within step 2; use 2 or more"),
    ],
)
def test_a_step_in_its_midst_refuses_options_that_it_began_without(
    tmp_path, monkeypatch, capsys, flags, words
):
    command = command_for(tmp_path)
    run = tmp_path / "run"
    stop_when(monkeypatch, in_update(1, step=1))
    assert main([*command, str(run)]) == STOPPED
    monkeypatch.undo()
    assert main([*command, str(run), "--resume_from_checkpoint", "auto", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (run / "final").exists()


def test_a_batch_that_was_under_way_at_a_stop_is_not_recorded(tmp_path, monkeypatch, capsys):
    command = command_for(tmp_path, record_batches=2)
    run = tmp_path / "run"
    stop_when(monkeypatch, in_update(1))
    assert main([*command, str(run)]) == STOPPED
    monkeypatch.undo()
    assert main([*command, str(run), "--resume_from_checkpoint", "auto"]) == 0
    assert "the batch of step 1 is not recorded" in capsys.readouterr().out
    assert [p.name for p in (run / "batches").iterdir()] == ["step-2.safetensors"]


def test_a_second_ctrl_c_does_not_wait():
    told = []
    with StopRequest().listening(told.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(told) == 1
    assert "Ctrl-C" in told[0]


def test_a_model_whose_weights_are_not_numbers_is_refused(tmp_path, capsys):
    command = command_for(tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][3] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    assert main([*command, str(tmp_path / "run")]) == 2
    assert "its logits are NaN or infinite: the weights are damaged" in capsys.readouterr().err


def test_weights_that_are_no_numbers_any_more_stop_the_sampling(tmp_path, monkeypatch, capsys):
    command = command_for(tmp_path, updates_per_step=1, num_iterations=1)
    step, calls = torch.optim.AdamW.step, [0]

    def breaks(self, *args, **kwargs):
        step(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] == 2:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", breaks)
    assert main([*command, str(tmp_path / "run")]) == 2
    assert (
        "sampling after 2 optimizer steps: the model's logits are NaN or infinite" in capsys.readouterr().err
    )
