"""Runs whose rewards log, judge and have routes: from the command line and from Python, stopped and resumed."""

from __future__ import annotations

import json

import pytest

from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers import forked
from helpers.judging import FakeEndpoint, length_judge
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.stops import STOPPED, in_update, same_bytes, stop_when
from helpers.tiny import ROWS, tiny_config, write_rows


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = FakeEndpoint(length_judge)
    yield server
    server.close()


def routed_rows() -> list[dict]:
    """Rows of two kinds, which two functions score."""
    return [row | {"data_source": ("org/a", "b")[place % 2]} for place, row in enumerate(ROWS)]


@pytest.fixture
def settings(tmp_path, judge):
    """The options of a run with all of it."""
    write_rows(tmp_path / "train.jsonl", routed_rows())
    return {
        "reward_funcs": (f"{REWARDS}:digits_in_order_logged", "judge", "length"),
        "reward_weights": (1.0, 0.5, 0.1),
        "reward_routes": ("data_source", "org/a=digits_in_order_logged", "b=judge,length"),
        "judge_url": judge.url,
        "updates_per_step": 2,
        "eval_dataset": str(tmp_path / "train.jsonl"),
        "eval_steps": 2,
        "eval_samples": 4,
        "eval_generations": 2,
        "log_completions": 4,
    }


def test_a_run_that_is_stopped_within_a_step_logs_the_same_bytes(tmp_path, monkeypatch, settings):
    config = tiny_config(tmp_path, **settings)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = ["train", "--config", str(tmp_path / "run.yaml"), "--output_dir"]
    assert main([*command, str(tmp_path / "expected")]) == 0
    stop_when(monkeypatch, in_update(1, step=1))
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    monkeypatch.undo()
    assert main([*command, str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(tmp_path / "run", tmp_path / "expected")
    steps = rows(tmp_path / "run", "metrics.jsonl")
    assert [step["mine/progress"] for step in steps] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert all(step["judge/malformed"] == 0 for step in steps)
    assert all(0 <= step["mine/order"] <= 1 for step in steps)
    evaluations = rows(tmp_path / "run", "evaluations.jsonl")
    assert [each["eval/mine/progress"] for each in evaluations] == pytest.approx([0, 2 / 3, 1])
    groups = rows(tmp_path / "run", "completions.jsonl")
    for group in groups:
        of_a = group["columns"]["data_source"] == "org/a"
        assert [x is None for x in group["rewards"]["judge"]] == [of_a] * 4
        assert [x is None for x in group["rewards"]["digits_in_order_logged"]] == [not of_a] * 4
        assert group["extras"]["order"] == group["rewards"]["digits_in_order_logged"]
        assert [bool(text) for text in group["extras"]["judge"]] == [not of_a] * 4
    page = (tmp_path / "run" / "report.html").read_text()
    assert "judge: So." in page


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_logged_mean_agrees_with_the_reward_in_calls_of_unequal_size(tmp_path, ranks):
    """Three prompts of a step on two ranks; an evaluation of 35 prompts, of which 32 are sampled together."""
    write_rows(tmp_path / "held_out.jsonl", [ROWS[place % len(ROWS)] for place in range(35)])
    settings = {"eval_dataset": str(tmp_path / "held_out.jsonl"), "eval_steps": 2, "eval_generations": 2}
    config = tiny_config(
        tmp_path,
        reward_funcs=(f"{REWARDS}:digits_in_order_logged",),
        prompts_per_step=3,
        max_steps=2,
        **settings,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    done = forked.run("grpokit", "train", "--config", tmp_path / "run.yaml", ranks=ranks, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for step in rows(tmp_path / "run", "metrics.jsonl"):
        assert step["mine/order"] == pytest.approx(step["reward"], abs=1e-12)
    for found in rows(tmp_path / "run", "evaluations.jsonl"):
        assert found["eval/mine/order"] == pytest.approx(found["eval/reward"], abs=1e-12)


def test_from_python_the_state_is_the_steps(tmp_path, judge, settings):
    seen = []

    def mine(completions, trainer_state, log_extra, **kwargs):
        seen.append((trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch))
        log_extra("kind", kwargs["data_source"])
        return [float(len(text)) for text in completions]

    config = tiny_config(tmp_path, max_steps=2)
    trainer = GRPOTrainer(
        model=config.model,
        reward_funcs=[mine, "judge"],
        args=config,
        train_dataset=routed_rows(),
        reward_routes=("data_source", "org/a=mine", "b=mine,judge"),
        judge_url=judge.url,
        judge_cache=str(tmp_path / "cache"),
    )
    trainer.train()
    assert seen == [(0, 2, 0.0), (1, 2, 0.4)]  # 4 of 10 rows in a step
    verdicts = [json.loads(file.read_text()) for file in (tmp_path / "cache").rglob("*.json")]
    assert len(verdicts) == len({body["messages"][0]["content"] for body in judge.asked}) > 3
    assert rows(tmp_path / "run", "completions.jsonl")[0]["extras"].keys() == {"kind", "judge"}
