"""Runs with each advantage estimator: from the command line and from Python, stopped and resumed, one step ahead."""

from __future__ import annotations

import pytest
import torch

from grpokit import GRPOTrainer
from grpokit.batch.estimators import ESTIMATORS
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.reward_functions import digits_in_order
from helpers.stops import goes_on_from_an_update
from helpers.tiny import tiny_config

BY_TOKEN = f"{REWARDS}:later_tokens_more"
NEW = ("maxrl", "remax", "reinforce_plus_plus_global", "gpg", "loo_std", "pass_k", BY_TOKEN)


def command_for(directory, **changes):
    """The command of a run; its last argument, the output directory, is missing."""
    config = tiny_config(directory, **({"max_steps": 2, "log_completions": 16} | changes))
    (directory / "run.yaml").write_text(to_yaml(config))
    return ["train", "--config", str(directory / "run.yaml"), "--output_dir"]


def by_hand(name, rewards, greedy):
    """The advantages of a step from its rewards [P, G]; `greedy` is the mean over prompts, which remax's sum up to."""
    r = torch.tensor(rewards, dtype=torch.float64)
    d, n = r - r.mean(1, keepdim=True), r.shape[1]
    spread = (r.amax(1) > r.amin(1))[:, None]
    if name == "maxrl":
        return d / r.mean(1, keepdim=True)
    if name == "reinforce_plus_plus_global":
        return (r - r.mean()) / (r.std() + 1e-4)
    if name == "gpg":
        return d * len(r) / spread.sum()
    if name == "loo_std":
        rest = torch.stack([torch.cat([r[:, :i], r[:, i + 1 :]], 1) for i in range(n)], 1)
        std = rest.std(2)
        return torch.where(std > 1e-12, (r - rest.mean(2)) / (std + 1e-4), r - rest.mean(2))
    if name == "pass_k":
        top = r.topk(2, 1).values
        return torch.where(r == top[:, :1], (top[:, :1] - top[:, 1:]) / (r.std(1, keepdim=True) + 1e-4), 0.0)
    assert name == BY_TOKEN
    return None


@pytest.mark.parametrize("name", [name for name in NEW if name != "remax"])
def test_what_a_run_logs_is_the_formula_of_its_rewards(tmp_path, name):
    assert main([*command_for(tmp_path, advantage_estimator=name), str(tmp_path / "run")]) == 0
    groups = rows(tmp_path / "run", "completions.jsonl")
    for step in (groups[:4], groups[4:]):
        want = by_hand(name, [g["reward"] for g in step], None)
        got = torch.tensor([g["advantages"] for g in step], dtype=torch.float64)
        assert got.abs().max() > 0.1
        if want is not None:
            torch.testing.assert_close(
                got, torch.where(got.any(1, keepdim=True), want, got), rtol=1e-9, atol=1e-9
            )


def test_remax_compares_with_what_the_model_would_say_greedily(tmp_path):
    """The function is called twice a step, the second time with the greedy completions, as transformers makes them."""
    config = tiny_config(tmp_path)
    calls = []

    def watched(prompts, completions):
        calls.append((list(prompts), list(completions)))
        return digits_in_order(completions)

    trainer = GRPOTrainer(
        model=config.model,
        reward_funcs=watched,
        train_dataset=config.dataset,
        advantage_estimator="remax",
        output_dir=str(tmp_path / "python"),
        prompts_per_step=4,
        num_generations=1,
        max_completion_length=6,
        max_steps=1,
        dtype="float64",
    )
    step = next(trainer.steps())
    (_, sampled), (prompts, greedy) = calls
    assert (len(sampled), len(greedy)) == (4, 4)
    baselines = digits_in_order(greedy)
    want = [r - b for r, b in zip(digits_in_order(sampled), baselines, strict=True)]
    assert [float(g.advantages[0]) for g in step.groups] == pytest.approx(want)
    assert step.metrics["reward/greedy"] == pytest.approx(sum(baselines) / 4)
    assert step.metrics["reward"] == pytest.approx(sum(digits_in_order(sampled)) / 4)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    for prompt, text in zip(prompts, greedy, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_token_id)
        assert tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).startswith(
            text
        )


@pytest.mark.parametrize("name", ["remax", BY_TOKEN])
def test_a_stop_within_an_update_and_a_resume_change_nothing(tmp_path, monkeypatch, name):
    command = command_for(tmp_path, advantage_estimator=name, updates_per_step=2)
    goes_on_from_an_update(monkeypatch, command, tmp_path)


def test_remax_resamples_groups_that_equal_their_greedy_completion(tmp_path):
    """--max_resample_times asks the estimator; the rounds reach the engine twice each."""
    command = command_for(
        tmp_path, advantage_estimator="remax", max_resample_times=2, max_completion_length=1
    )
    assert main([*command, str(tmp_path / "run")]) == 0
    metrics = rows(tmp_path / "run", "metrics.jsonl")
    assert sum(row["resampled_groups"] for row in metrics) > 0
    assert all("reward/greedy" in row for row in metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage_estimator": "rloo", "advantage_epsilon": 1e-6}, "divides by no standard deviation"),
        ({"advantage_epsilon": -1.0}, "--advantage_epsilon -1.0: must be finite and at least 0"),
        ({"scale_rewards": "none", "advantage_epsilon": 1e-6}, "--scale_rewards none"),
        (
            {"advantage_estimator": "remax", "kl_in_reward": True, "beta": 0.1},
            "compares with a greedy completion",
        ),
        ({"advantage_estimator": "maxrl", "num_generations": 1}, "use 2 or more"),
        (
            {"advantage_estimator": "reinforce_plus_plus_global", "max_resample_times": 1},
            "learns from groups of equal rewards",
        ),
        ({"advantage_estimator": "maxrl", "reward_weights": (-1.0,)}, "so rewards must be at least 0"),
        ({"advantage_estimator": BY_TOKEN, "loss_type": "gspo"}, "gspo_token"),
    ],
)
def test_what_can_not_work_is_refused(tmp_path, capsys, changes, message):
    assert main([*command_for(tmp_path, **changes), str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).split())


def test_one_completion_of_each_prompt_is_enough_without_a_group(tmp_path):
    for name in (row.name for row in ESTIMATORS.values() if not row.compares):
        command = command_for(tmp_path, advantage_estimator=name, num_generations=1, prompts_per_step=8)
        assert main([*command, str(tmp_path / name)]) == 0
        assert all(row["grad_norm"] > 0 for row in rows(tmp_path / name, "metrics.jsonl"))


def test_the_epsilon_reaches_the_advantages(tmp_path):
    changed = command_for(tmp_path, advantage_epsilon=0.5)
    assert main([*changed, str(tmp_path / "run")]) == 0
    for group in rows(tmp_path / "run", "completions.jsonl")[:4]:
        r = torch.tensor(group["reward"], dtype=torch.float64)
        assert group["advantages"] == pytest.approx(((r - r.mean()) / (r.std() + 0.5)).tolist(), abs=1e-9)
