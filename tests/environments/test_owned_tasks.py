"""Environments that own their data: a run without a dataset, whose prompts are what `reset` says."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers.agents import WORLDS, config_of, make_chat_model
from helpers.running import start, train


def owned(tmp_path, *names, **changes):
    return config_of(
        tmp_path, environment=tuple(names) or (f"{WORLDS}:Owner",), **({"dataset": ""} | changes)
    )


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_prompts_come_from_reset_and_are_the_same_within_a_group(tmp_path):
    run = start(owned(tmp_path))
    groups = run.rollouts.sampler.sample(run.prompts.take(0, 6), 3)
    run.close()
    said = [{run.tokenizer.decode(r.episode.prompt_ids) for r in group.rollouts} for group in groups]
    assert all(len(texts) == 1 for texts in said)
    assert len({text for texts in said for text in texts}) > 2
    assert all("Say " in text for texts in said for text in texts)


def test_it_trains_evaluates_and_resumes_to_the_same_bytes(tmp_path):
    def run_of(name, **changes):
        output = tmp_path / name
        run = start(
            owned(tmp_path, output_dir=str(output), save_steps=1, eval_steps=1, eval_samples=3, **changes)
        )
        train(run)
        run.close()
        return (output / "final" / "model.safetensors").read_bytes()

    whole = run_of("whole")
    run_of("halves", max_steps=1)
    assert run_of("halves", resume_from_checkpoint="auto") == whole
    assert all("eval/reward" in row for row in rows_of(tmp_path / "whole"))


def test_evaluation_has_other_tasks_than_training(tmp_path):
    run = start(owned(tmp_path, eval_steps=1, eval_samples=6))
    training, held_out = (
        [g.rollouts[0].episode.prompt_ids for g in sampler.sample(run.prompts.take(0, 6), 1)]
        for sampler in (run.rollouts.sampler, run.held_out[0].sampler)
    )
    run.close()
    assert training != held_out


def test_several_environments_take_turns(tmp_path):
    config = owned(tmp_path, f"one={WORLDS}:Owner", f"two={WORLDS}:Owner")
    run = start(config)
    prompts = run.prompts.take(0, 4)
    run.close()
    assert [prompt.columns["environment"] for prompt in prompts] == ["one", "two", "one", "two"]


def test_eval_from_the_command_line_and_training_from_python(tmp_path, capsys):
    from grpokit import GRPOTrainer

    make_chat_model(tmp_path / "model")
    common = ["--model", str(tmp_path / "model"), "--environment", f"{WORLDS}:Owner"]
    common += ["--max_completion_length", "30", "--num_generations", "2", "--max_samples", "5"]
    assert main(["eval", *common, "--output_file", str(tmp_path / "out.json")]) == 0
    assert "on 5 prompts of" in " ".join(capsys.readouterr().out.split())
    assert 0 <= json.loads((tmp_path / "out.json").read_text())["eval/reward"] <= 2
    sys.path.insert(0, str(WORLDS.parent))
    from worlds import Owner

    options = {"max_steps": 1, "prompts_per_step": 2, "num_generations": 2, "max_completion_length": 30}
    trainer = GRPOTrainer(
        str(tmp_path / "model"), environment_factory=Owner, output_dir=str(tmp_path / "run"), **options
    )
    assert "rewards/Owner/mean" in trainer.train()[0]


def test_logs_and_rewards_have_the_prompt_that_reset_made(tmp_path):
    (tmp_path / "said.py").write_text(
        "def said(prompts, completions, **columns):\n    return [float(len(p[-1]['content'])) for p in prompts]\n"
    )
    reward = (f"{tmp_path / 'said.py'}:said",)
    run = start(owned(tmp_path, reward_funcs=reward, log_completions=2, max_steps=1))
    train(run)
    run.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["prompt"][-1]["content"].startswith("Say ")
        assert row["rewards"]["said"] == [float(len(row["prompt"][-1]["content"]))] * len(row["completions"])
    assert "Say " in (tmp_path / "run" / "report.html").read_text()


BEGINNERS = {
    "a step that isn't annotated": (
        "class W:\n    def reset(self, seed): return 'hi'\n    def step(self, message): return 'x'\n",
        "annotate it: `def step.self, message. -> Observation`",
    ),
    "a column that isn't there": (
        "from grpokit.environments import Observation\nclass W:\n    def reset(self, seed, answer): return 'hi'\n"
        "    def step(self, message) -> Observation: return Observation('x')\n",
        "reset needs `answer`",
    ),
    "a failure": (
        "from grpokit.environments import Observation\nclass W:\n    def reset(self, seed): return 'hi'\n"
        "    def step(self, message) -> Observation: raise OSError('gone')\n",
        "--max_environment_errors N drops up to N such episodes instead",
    ),
}


@pytest.mark.parametrize("kind", BEGINNERS)
def test_what_beginners_do_is_answered_with_the_fix(tmp_path, capsys, kind):
    code, message = BEGINNERS[kind]
    (tmp_path / "w.py").write_text(code)
    (tmp_path / "run.yaml").write_text(to_yaml(owned(tmp_path, f"{tmp_path / 'w.py'}:W")))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "ROWS", "tools": (f"{WORLDS}:add",), "environment": (f"{WORLDS}:Counter",)},
            "--tools: add is a method of the environment Counter too",
        ),
        (
            {
                "dataset": "ROWS",
                "tools": (f"{WORLDS}:add",),
                "environment": (),
                "reward_funcs": ("length",),
                "max_environment_errors": 3,
            },
            "--max_environment_errors 3: is for environments",
        ),
        ({"tools": (f"{WORLDS}:Counter",)}, "Counter is a class; a tool is a function"),
        ({"environment": ("http://localhost:1",)}, "an OpenEnv server is named openenv:http://localhost:1"),
        (
            {"environment": (f"{WORLDS}:Counter",)},
            "there is nothing for the model to read; without --dataset",
        ),
        (
            {"environment": (), "tools": (f"{WORLDS}:add",), "reward_funcs": ("length",)},
            r"--dataset \(missing\): is required, unless an --environment makes the prompts",
        ),
    ],
)
def test_what_makes_no_prompt_is_refused(tmp_path, capsys, changes, message):
    changes = {"dataset": ""} | changes
    changes["dataset"] = changes["dataset"].replace("ROWS", str(tmp_path / "train.jsonl"))
    (tmp_path / "run.yaml").write_text(to_yaml(config_of(tmp_path, **changes)))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_evaluations_give_rewards_what_training_gives_and_check_the_columns_first(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "def own(completions, environments):\n    return [float(e.left) for e in environments]\n"
    )
    reward = f"{tmp_path / 'own.py'}:own"
    config = config_of(tmp_path, reward_funcs=(reward,), max_steps=1, eval_samples=2)
    run = start(dataclasses.replace(config, eval_dataset=config.dataset[0]))
    train(run)
    run.close()
    common = ["eval", "--model", str(tmp_path / "model"), "--dataset", *config.dataset]
    common += ["--max_completion_length", "30", "--num_generations", "1", "--max_samples", "2"]
    assert main([*common, "--environment", f"{WORLDS}:Echo", "--reward_funcs", reward]) == 0
    (tmp_path / "w.py").write_text(BEGINNERS["a column that isn't there"][0])
    capsys.readouterr()
    assert main([*common, "--environment", f"{tmp_path / 'w.py'}:W"]) == 2
    assert "reset needs `answer`" in " ".join(capsys.readouterr().err.split())


def test_inspect_data_shows_the_prompts_that_episodes_begin_with(tmp_path, capsys):
    config_of(tmp_path)  # the model and the rows
    common = ["inspect-data", str(tmp_path / "train.jsonl"), "--model", str(tmp_path / "model")]
    assert main([*common, "--environment", f"{WORLDS}:Echo", "--rows", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("You have") == 4
    assert main([*common, "--tools", f"{WORLDS}:add"]) == 0
    assert "# Tools" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect-data", str(tmp_path / "train.jsonl"), "--tools", f"{WORLDS}:add"]) == 2


def test_plan_knows_what_episodes_keep(tmp_path, capsys):
    make_chat_model(tmp_path / "model")
    common = ["plan", "--model", str(tmp_path / "model")]
    assert main(common) == 0
    assert "kept from turn to turn" not in capsys.readouterr().out
    assert main([*common, "--environment", f"{WORLDS}:Echo"]) == 0
    assert "kept from turn to turn" in " ".join(capsys.readouterr().out.split())
