"""Runs with --turn_discount: each turn of an episode by the rewards from there on, stopped, resumed and among cuts."""

from __future__ import annotations

import json

import pytest
import torch

from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.common.imports import load_object
from grpokit.config.yaml import to_yaml
from grpokit.runs.metrics import is_of_machine
from helpers.agents import config_of
from helpers.launch import rows
from helpers.stops import goes_on_from_an_update

COUNTS = """
from grpokit.environments import Observation

class Counts:
    '''Each turn is rewarded by its length; the first the most.'''

    def reset(self, **columns):
        self.turns = 0

    def step(self, message) -> Observation:
        self.turns += 1
        return Observation("go on", reward=len(message) / 8 / self.turns, done=self.turns == 3)
"""


def command_for(directory, **changes):
    (directory / "world.py").write_text(COUNTS)
    settings = {"environment": (f"{directory}/world.py:Counts",), "turn_discount": 0.5, "log_completions": 16}
    config = config_of(directory, **(settings | changes))
    (directory / "run.yaml").write_text(to_yaml(config))
    return ["train", "--config", str(directory / "run.yaml"), "--output_dir"]


def test_the_tokens_of_a_turn_have_the_advantage_of_its_return(tmp_path):
    """From Python, with the environment's class: recomputed from the rewards that the episodes recorded."""

    (tmp_path / "world.py").write_text(COUNTS)
    config = config_of(tmp_path)
    trainer = GRPOTrainer(
        model=config.model,
        train_dataset=config.dataset,
        environment_factory=load_object(f"{tmp_path}/world.py:Counts", "environment_factory"),
        turn_discount=0.5,
        scale_rewards="none",
        prompts_per_step=4,
        num_generations=4,
        max_completion_length=60,
        max_turn_length=12,
        max_turns=3,
        max_steps=1,
        dtype="float64",
        output_dir=str(tmp_path / "run"),
    )
    step = next(trainer.steps())
    several = 0
    for group in step.groups:
        episodes = [rollout.episode for rollout in group.rollouts]
        returns = []
        for episode, total in zip(episodes, group.reward.tolist(), strict=True):
            own = list(episode.turn_rewards or [0.0] * len(episode.turns))
            assert sum(own) == pytest.approx(total)
            own = own[: len(episode.turns)]
            backwards = []
            for reward in reversed(own):
                backwards.append(reward + 0.5 * (backwards[-1] if backwards else 0.0))
            returns.append(backwards[::-1])
            several += len(own) > 1
        for g, (episode, own) in enumerate(zip(episodes, returns, strict=True)):
            for k, (begin, end) in enumerate(episode.turns):
                at = [other[min(k, len(other) - 1)] for other in returns]
                want = own[k] - sum(at) / len(at)
                got = group.token_advantages[g][begin:end]
                torch.testing.assert_close(got, torch.full_like(got, want), rtol=1e-9, atol=1e-9)
    assert several > 4
    assert step.metrics["grad_norm"] > 0


def test_a_stop_within_an_update_and_a_resume_change_nothing(tmp_path, monkeypatch):
    command = command_for(tmp_path, updates_per_step=2)
    goes_on_from_an_update(monkeypatch, command, tmp_path)


def test_cuts_change_nothing(tmp_path):
    for name, changes in (("whole", {}), ("cut", {"micro_batch_tokens": 200, "share_prompts": "never"})):
        assert main([*command_for(tmp_path, **changes), str(tmp_path / name)]) == 0
    for one, other in zip(
        *(rows(tmp_path / name, "metrics.jsonl") for name in ("whole", "cut")), strict=True
    ):
        kept = {name: value for name, value in one.items() if not is_of_machine(name)}
        assert kept == pytest.approx({name: other[name] for name in kept}, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn_discount": 1.5}, "--turn_discount 1.5: must be from 0 to 1"),
        ({"advantage_estimator": "rloo"}, "leave out rloo, or this"),
        ({"scale_rewards": "batch"}, "use --scale_rewards group or none"),
        ({"loss_type": "gspo"}, "gspo_token"),
    ],
)
def test_what_can_not_work_is_refused(tmp_path, capsys, changes, message):
    assert main([*command_for(tmp_path, **changes), str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).split())


def test_the_log_has_means(tmp_path):
    assert main([*command_for(tmp_path, max_steps=1), str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["advantages"]) == 4 for line in lines)


@pytest.mark.parametrize(("max_turns", "said"), [(1, True), (3, False)])
def test_turns_that_change_nothing_are_said(tmp_path, capsys, max_turns, said):
    assert main([*command_for(tmp_path, max_steps=1, max_turns=max_turns), str(tmp_path / "run")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert ("has one advantage for all its tokens: --turn_discount acts where" in out) == said
