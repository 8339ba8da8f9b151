"""Learning from episodes: only sampled tokens have a gradient, and the weights are the same however an update is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from grpokit.batch.advantages import add_advantages
from grpokit.batch.plan import plan_step
from grpokit.config.yaml import to_yaml
from grpokit.policy.learn import Learning, StepProgress, learn, optimize
from grpokit.policy.load import load_policy
from helpers import forked
from helpers.agents import config_of
from helpers.family_data import build
from helpers.launch import rows
from helpers.running import start

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A chat model's directory, and scored groups of its episodes; one of them has no trainable token."""
    directory = tmp_path_factory.mktemp("episodes")
    run = start(config_of(directory))
    groups = run.rollouts.sampler.sample(run.prompts.take(0, 4), 4)
    run.close()
    first = groups[0].rollouts[0]
    masked = dataclasses.replace(first, trainable=torch.zeros_like(first.trainable))
    groups[0] = dataclasses.replace(groups[0], rollouts=(masked, *groups[0].rollouts[1:]))
    assert {len(r.episode.turns) for g in groups for r in g.rollouts} >= {1, 2}
    scored = []
    for place, group in enumerate(groups):
        reward = torch.tensor([0.0, 1.0, 0.5, float(place)]).double()
        scored.append(dataclasses.replace(group, rewards=reward[:, None], reward=reward))
    return directory / "model", add_advantages(scored)


def load(path):
    return load_policy(str(path), dtype="float64", temperature=1.0, device=CPU)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "cispo", "sapo", "gspo"])
def test_the_same_weights_however_it_is_cut(world, name):
    path, groups = world
    ends = []
    for how in (
        {"micro_batch_tokens": 100_000},
        {"micro_batch_tokens": 1},
        {"micro_batch_tokens": 200, "packed": True},
        {"micro_batch_tokens": 300, "share": "always"},
        {"micro_batch_tokens": 100_000, "drop_dead_rows": False},
    ):
        loss = build(name)
        policy = load(path)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        learn(
            policy,
            None,
            StepProgress(plan_step(groups, loss)),
            loss,
            optimizer,
            Learning(2, max_grad_norm=0, **how),
        )
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("share", ["never", "always"])
def test_the_gradient_is_a_plain_loops_with_a_mask(world, share):
    path, groups = world
    loss, policy = build("dapo"), load(path)
    update = plan_step(groups, loss)[0]
    optimize(
        policy,
        update,
        loss,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        Learning(max_grad_norm=0, share=share),
    )
    got = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    total = sum(int(r.trainable.sum()) for g in groups for r in g.rollouts)
    value = 0.0
    with policy.computing():
        for group in groups:
            for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
                ids = torch.tensor([[*rollout.episode.prompt_ids, *rollout.completion_ids.tolist()]])
                start_ = len(rollout.episode.prompt_ids) - 1
                logits = policy.model(input_ids=ids, use_cache=False).logits[0, start_:-1]
                logps = logits.log_softmax(-1).gather(-1, rollout.completion_ids[:, None])[:, 0]
                value = value - float(advantage) * (logps * rollout.trainable).sum() / total
    value.backward()
    for ours, parameter in zip(got, policy.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_ranks_sample_and_train_the_same_episodes(tmp_path):
    ends = []
    for ranks in (1, 2, 4):
        config = config_of(tmp_path, output_dir=str(tmp_path / f"ranks-{ranks}"), log_completions=4)
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        done = forked.run("grpokit", "train", "--config", tmp_path / "run.yaml", ranks=ranks, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        run = tmp_path / f"ranks-{ranks}"
        ends.append((rows(run, "completions.jsonl"), rows(run, "metrics.jsonl")))
    for episodes, metrics in ends[1:]:
        for theirs, ours in zip(episodes, ends[0][0], strict=True):
            assert theirs["episodes"] == ours["episodes"]
        for theirs, ours in zip(metrics, ends[0][1], strict=True):
            assert theirs == pytest.approx(ours, rel=1e-8, abs=1e-10)
