"""Whole runs: what a run leaves behind, the same weights however it's cut, and exact resume after a kill."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from grpokit.commands.cli import main
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from grpokit.runs.metrics import METRICS, declared_name, is_of_machine
from helpers import forked
from helpers.places import REWARDS
from helpers.running import start, train
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows


def run(config: TrainConfig) -> Path:
    """Train in this process and return the run's directory."""
    r = start(config)
    try:
        train(r)
    finally:
        r.close()
    return r.output


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if not is_of_machine(k)} for r in rows]


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "dr_grpo"])
def test_five_steps_in_float64_do_not_depend_on_the_micro_batches(tmp_path, loss_type):
    ends, logs = [], []
    for budget in (9, 40, 4096):
        config = tiny_config(
            tmp_path,
            loss_type=loss_type,
            max_steps=5,
            micro_batch_tokens=budget,
            output_dir=str(tmp_path / f"run-{budget}"),
            beta=0.02 if loss_type == "dr_grpo" else 0.0,
            updates_per_step=2 if loss_type == "cispo" else 1,
        )
        output = run(config)
        ends.append(weights(output / "final"))
        logs.append(without_time(lines(output / "metrics.jsonl")))
    moved = weights(tmp_path / "model")
    for other, log in zip(ends[1:], logs[1:], strict=True):
        for name, tensor in ends[0].items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-10)
        for mine, theirs in zip(logs[0], log, strict=True):
            assert theirs == pytest.approx(mine, rel=1e-8, abs=1e-10)
    assert any(not torch.allclose(ends[0][n], moved[n].double(), atol=1e-4) for n in moved)


@pytest.mark.full_report
def test_a_run_leaves_metrics_completions_weights_and_a_report(tmp_path):
    write_rows(tmp_path / "eval.jsonl", ROWS[:3])
    config = tiny_config(
        tmp_path,
        eval_dataset=str(tmp_path / "eval.jsonl"),
        eval_steps=2,
        save_steps=2,
        max_steps=3,
        dtype="float32",
    )
    output = run(config)
    rows = lines(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        for name in row:
            assert name == "step" or name.startswith("eval/") or declared_name(name) in METRICS
    assert {"reward", "reward_std", "entropy", "loss", "grad_norm", "kl"} - rows[0].keys() == {"kl"}
    assert [r["step"] for r in lines(output / "evaluations.jsonl")] == [0, 2, 3]
    assert "eval/pass@1_greedy" in rows[1]
    assert "eval/pass@1" not in rows[0]
    groups = lines(output / "completions.jsonl")
    assert {g["step"] for g in groups} == {1, 2, 3}
    for g in groups:
        assert len(g["completions"]) == len(g["advantages"]) == len(g["reward"]) == 4
        assert g["rewards"]["digits_in_order"] == g["reward"]
    saved = yaml.safe_load((output / "config.yaml").read_text())
    assert saved["loss_type"] == "dapo"
    assert (output / "report.html").stat().st_size > 10_000
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for directory in (output / "final", output / "checkpoint-2"):
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert model.dtype == torch.float32
        assert AutoTokenizer.from_pretrained(directory).eos_token_id is not None
    assert not (output / "checkpoint-3").exists()


def test_the_saved_config_is_one_that_trains(tmp_path):
    first = run(tiny_config(tmp_path, max_steps=2))
    again = tmp_path / "again"
    assert main(["train", "--config", str(first / "config.yaml"), "--output_dir", str(again)]) == 0
    assert without_time(lines(again / "metrics.jsonl")) == without_time(lines(first / "metrics.jsonl"))


@pytest.mark.parametrize("save_dtype", [None, "bfloat16"])
def test_resume_is_bit_for_bit(tmp_path, save_dtype):
    """N steps, a new process's worth of state, N more: byte-equal to 2N, also when the model is saved in bf16."""
    config = tiny_config(tmp_path, dtype="float32", max_steps=6, save_steps=3, save_dtype=save_dtype)
    whole = run(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    half = run(dataclasses.replace(config, max_steps=3))
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward": 0.1}\n{"step": 5, "rew')  # a torn tail
    resumed = run(dataclasses.replace(config, resume_from_checkpoint="auto"))
    assert resumed == half
    for name in (
        "final/model.safetensors",
        "checkpoint-6/model.safetensors",
        "checkpoint-6/trainer/optimizer.safetensors",
    ):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    assert without_time(lines(resumed / "metrics.jsonl")) == without_time(lines(whole / "metrics.jsonl"))
    assert lines(resumed / "completions.jsonl") == lines(whole / "completions.jsonl")
    assert (resumed / "checkpoint-3/trainer/parameters.safetensors").exists() == (save_dtype is not None)


@pytest.mark.parametrize("kill_at", [2, 5])
def test_a_run_after_sigkill_resumes_to_the_same_bytes(tmp_path, monkeypatch, kill_at):
    """SIGKILL in a reward call before and after the first checkpoint; `auto` ends at the same bytes."""
    config = tiny_config(tmp_path, dtype="float32", max_steps=6, save_steps=3)
    config = dataclasses.replace(config, reward_funcs=(f"{REWARDS}:kills",))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--resume_from_checkpoint", "auto"]
    command += ["--output_dir"]
    killed = forked.run("grpokit", *command, tmp_path / "killed", KILL_AT=str(kill_at))
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "killed" / "checkpoint-3").exists() == (kill_at > 3)
    monkeypatch.setenv("KILL_AT", "0")
    assert main([*command, str(tmp_path / "killed")]) == 0
    assert main([*command, str(tmp_path / "whole")]) == 0
    for name in (
        "final/model.safetensors",
        "checkpoint-6/trainer/optimizer.safetensors",
        "completions.jsonl",
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    steps = [row["step"] for row in lines(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_random_state_of_reward_functions_is_resumed(tmp_path):
    """A reward that draws from Python's, numpy's and torch's generators draws the same after a resume."""
    (tmp_path / "rewards.py").write_text(
        "import random, numpy, torch\n"
        "def noisy(completions):\n"
        "    return [random.random() + numpy.random.rand() + float(torch.rand(())) for _ in completions]\n"
    )
    config = tiny_config(tmp_path, dtype="float32", max_steps=4, save_steps=2)
    config = dataclasses.replace(config, reward_funcs=(f"{tmp_path}/rewards.py:noisy",))
    whole = run(config)
    want = lines(whole / "metrics.jsonl")
    shutil.rmtree(whole / "checkpoint-4")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run(dataclasses.replace(config, resume_from_checkpoint="auto"))
    assert without_time(lines(whole / "metrics.jsonl")) == without_time(want)


def test_tied_embeddings_train_and_save(tmp_path):
    make_model_dir(tmp_path / "model", tied=True)
    output = run(tiny_config(tmp_path, max_steps=2, dtype="float32", save_steps=1))
    resumed = run(
        tiny_config(tmp_path, max_steps=3, dtype="float32", save_steps=1, resume_from_checkpoint="auto")
    )
    assert output == resumed
    assert "lm_head.weight" not in weights(resumed / "final")


def test_the_shipped_generation_config_is_saved_again(tmp_path):
    make_model_dir(tmp_path / "model", top_k=5, repetition_penalty=1.3, do_sample=True)
    output = run(tiny_config(tmp_path, max_steps=1, dtype="float32"))
    saved = json.loads((output / "final" / "generation_config.json").read_text())
    assert (saved["top_k"], saved["repetition_penalty"]) == (5, 1.3)


def test_bfloat16_compute_trains(tmp_path):
    output = run(tiny_config(tmp_path, max_steps=2, dtype="bfloat16"))
    assert all(torch.isfinite(t).all() for t in weights(output / "final").values())


def test_the_best_model_by_evaluation_is_kept(tmp_path, monkeypatch):
    """The weights of the step whose held-out reward was highest, whatever came after."""
    import grpokit.training.evaluation
    from helpers.running import start, train

    rewards, weights = iter([0.2, 0.3, 0.5, 0.4]), []

    def figures(*_, **__):
        weights.append(run.policy.model.get_input_embeddings().weight.detach().clone())
        return grpokit.training.evaluation.Evaluation({"eval/reward": next(rewards)}, {})

    monkeypatch.setattr(grpokit.training.evaluation, "evaluate", figures)
    data = str(tmp_path / "train.jsonl")
    run = start(tiny_config(tmp_path, eval_dataset=data, eval_steps=1, eval_samples=2, max_steps=3))
    train(run)
    run.close()
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(kept, weights[2])
    assert not torch.equal(kept, weights[3])


def test_eval_steps_without_held_out_prompts_are_said_to_do_nothing(tmp_path, capsys):
    config = tiny_config(tmp_path, eval_steps=2, max_steps=1)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    assert "note: --eval_steps 2 does nothing without --eval_dataset" in capsys.readouterr().out
