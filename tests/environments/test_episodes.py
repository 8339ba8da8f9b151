"""Episodes: trained tokens are the sampled tokens, on any layout, and the rest has no gradient."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch

from grpokit.batch.plan import plan_step
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import load_yaml
from grpokit.rollouts.trial import log_probs_alone
from helpers.agents import WORLDS, config_of
from helpers.running import start, train


def groups_of(run):
    return run.rollouts.sampler.sample(run.prompts.take(0, 4), 4)


@pytest.mark.parametrize("decode", ["loop", "generate"])
def test_recorded_log_probs_are_those_of_a_fresh_forward_over_the_episode(tmp_path, decode):
    run = start(config_of(tmp_path, decode=decode))
    turns = []
    for group in groups_of(run):
        for rollout in group.rollouts:
            ids, episode = rollout.completion_ids.tolist(), rollout.episode
            turns.append(len(episode.turns))
            alone = log_probs_alone(run.policy, [*episode.prompt_ids, *ids])[len(episode.prompt_ids) - 1 :]
            assert rollout.trainable.tolist() == [
                any(begin <= place < end for begin, end in episode.turns) for place in range(len(ids))
            ]
            kept = rollout.trainable
            torch.testing.assert_close(rollout.logps[kept].double(), alone[kept], rtol=0, atol=1e-9)
            assert bool(rollout.entropies[~kept].isnan().all())
    run.close()
    assert set(turns) == {1, 2, 3}


def test_a_run_trains_logs_and_resumes(tmp_path):
    def run_of(name, **changes):
        run = start(
            config_of(tmp_path, output_dir=str(tmp_path / name), save_steps=1, log_completions=4, **changes)
        )
        train(run)
        run.close()
        return (tmp_path / name / "final" / "model.safetensors").read_bytes()

    whole = run_of("whole")
    run_of("halves", max_steps=1)
    assert run_of("halves", resume_from_checkpoint="auto") == whole
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["rewards/Echo/mean"] > 0 for row in rows)


def test_tools_are_called_and_their_answers_read(tmp_path):
    run = start(
        config_of(
            tmp_path,
            environment=(),
            tools=(f"{WORLDS}:add", f"{WORLDS}:multiply"),
            tool_parser=f"{WORLDS}:always_adds",
            reward_funcs=("length",),
        )
    )
    calls = 0
    for group in groups_of(run):
        assert "Add two numbers" in run.tokenizer.decode(group.prompt.ids)
        for rollout in group.rollouts:
            for message, answer in zip(rollout.episode.messages, rollout.episode.messages[1:], strict=False):
                if message.get("tool_calls"):
                    arguments = message["tool_calls"][0]["function"]["arguments"]
                    assert answer == {
                        "role": "tool",
                        "tool_call_id": message["tool_calls"][0]["id"],
                        "name": "add",
                        "content": str(arguments["a"] + 1),
                    }
                    calls += 1
    run.close()
    assert calls > 5


def test_an_environments_tools_share_its_state(tmp_path):
    run = start(config_of(tmp_path, environment=(f"{WORLDS}:Counter",), tool_parser=f"{WORLDS}:always_adds"))
    found = [rollout.episode for group in groups_of(run) for rollout in group.rollouts]
    run.close()
    assert {episode.reward for episode in found} >= {0.0, 1.0}
    for episode in found:
        assert episode.reward == sum(episode.calls.values())
        assert episode.environment.closed


def test_members_of_a_group_meet_the_same_task(tmp_path):
    run = start(config_of(tmp_path))
    groups = groups_of(run)
    run.close()
    assert all(len({r.episode.prompt_ids for r in group.rollouts}) == 1 for group in groups)
    assert len({group.rollouts[0].episode.prompt_ids for group in groups}) > 1
    samples = plan_step([g for g in _scored(groups)], run.loss)[0].samples
    assert samples[0].prompt_ids == groups[0].rollouts[0].episode.prompt_ids


def _scored(groups):
    import dataclasses

    from grpokit.batch.advantages import add_advantages

    for group in groups:
        reward = torch.arange(4).double()
        yield add_advantages([dataclasses.replace(group, rewards=reward[:, None], reward=reward)])[0]


def test_the_same_episodes_in_any_batch(tmp_path):
    found = []
    for size in (256, 3):
        run = start(config_of(tmp_path, rollout_batch_size=size, output_dir=str(tmp_path / str(size))))
        found.append([r.completion_ids.tolist() for g in groups_of(run) for r in g.rollouts])
        run.close()
    assert found[0] == found[1]


def test_the_report_shows_episodes_as_conversations(tmp_path):
    run = start(config_of(tmp_path, max_steps=1, log_completions=4))
    train(run)
    run.close()
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'class="role">assistant, trained</div>' in page
    assert 'class="role">user, read</div>' in page
    assert " characters" in page
    assert "turns, ended by done" in page


def test_from_python_objects_are_enough_and_named(tmp_path):
    from grpokit import GRPOTrainer
    from helpers.agents import ROWS

    sys.path.insert(0, str(WORLDS.parent))
    from worlds import Counter, Echo, multiply

    config_of(tmp_path)  # makes the model
    common = {"model": str(tmp_path / "model"), "train_dataset": ROWS, "max_steps": 1, "prompts_per_step": 2}
    common |= {"num_generations": 2, "max_completion_length": 60, "max_turn_length": 10}
    trainer = GRPOTrainer(environment_factory=Echo, output_dir=str(tmp_path / "echo"), **common)
    assert "rewards/Echo/mean" in trainer.train()[0]
    many = {"count": Counter, "echo": Echo}
    rows = [{**row, "environment": name} for row, name in zip(ROWS, ("count", "echo") * 2, strict=True)]
    trainer = GRPOTrainer(
        environment_factory=many,
        tools=[multiply],
        output_dir=str(tmp_path / "many"),
        **(common | {"train_dataset": rows, "prompts_per_step": 4}),
    )
    row = trainer.train()[0]
    assert {"rewards/Counter/mean", "rewards/Echo/mean"} <= row.keys()
    assert "python:multiply" in (tmp_path / "many" / "config.yaml").read_text()
    written = load_yaml(TrainConfig, str(tmp_path / "echo" / "config.yaml"))
    again = {"dataset": str(tmp_path / "train.jsonl"), "output_dir": str(tmp_path / "cli")}
    with pytest.raises(ValueError, match="was given from Python; go on from Python, or name a file"):
        start(dataclasses.replace(written, **again))
