"""Numbers that are not finite: what stops, what is skipped, and what can be replayed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpokit.commands.cli import main
from grpokit.runs.checkpoint import checkpoints
from grpokit.types import LossOutput, Metric
from helpers.disturbed import write_config
from helpers.launch import rows
from helpers.tiny import make_model_dir


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


def test_updates_that_are_not_finite_are_skipped_up_to_the_limit(tmp_path, monkeypatch, capsys):
    """One token's log-prob is NaN in two updates: they are skipped and counted, the third stops the run."""
    from grpokit.policy.policy import Policy

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


def test_a_file_that_is_no_dump_is_refused(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert main(["replay", str(tmp_path / "x.safetensors")]) == 2
    assert "is no dump of a micro-batch" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "y.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err
