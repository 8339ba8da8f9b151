"""A step's learning: one gradient however it's cut, and `old` that is the policy at the start of the step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from grpokit.batch.advantages import add_advantages
from grpokit.batch.collate import collate
from grpokit.batch.plan import plan_step
from grpokit.losses import make_loss
from grpokit.policy.learn import Learning, NonFiniteError, StepProgress, learn, optimize, score
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.policy.mismatch import drop_rejected, micro_mismatch
from grpokit.rollouts.transformers import TransformersSampler
from grpokit.runs.metrics import METRICS, declared_name, values
from grpokit.types import Prompt, RolloutGroup
from helpers.family_data import FAMILY, build
from helpers.running import micro_batches
from helpers.tiny import make_model_dir

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("m") / "model")


def fresh(directory):
    policy = load_policy(str(directory), dtype="float64", temperature=0.9, device=CPU)
    return policy, torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.1)


def groups_of(directory, rewards=None):
    """Four groups of four real rollouts; every other group has equal rewards, so its rows are dead."""
    policy, _ = fresh(directory)
    tokenizer = load_tokenizer(str(directory))
    sampler = TransformersSampler(policy, tokenizer, seed=3, max_completion_length=7)
    prompts = [Prompt(i, tuple(range(3, 5 + i)), "", {}, f"t:{i}") for i in range(4)]
    groups: list[RolloutGroup] = []
    for i, group in enumerate(sampler.sample(prompts, 4)):
        reward = torch.tensor([0.0, 1.0, 0.5, float("nan")] if i % 2 else [1.0] * 4, dtype=torch.float64)
        groups.append(dataclasses.replace(group, rewards=reward[:, None], reward=reward))
    return add_advantages(groups)


def run(
    directory, name, updates=1, beta=0.0, entropy_coef=None, top_entropy_quantile=None, correct=None, **how
):
    loss = build(
        name,
        beta=beta,
        entropy_coef=entropy_coef,
        top_entropy_quantile=top_entropy_quantile,
        **(correct or {}),
    )
    policy, optimizer = fresh(directory)
    reference = fresh(directory)[0] if beta else None
    if reference is not None:
        with torch.no_grad():
            next(reference.parameters()).mul_(1.1)  # a reference that isn't the policy
    plan = plan_step(groups_of(directory), loss, updates)
    metrics = learn(policy, reference, StepProgress(plan), loss, optimizer, Learning(**how))
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), values(metrics)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("terms", [{}, {"beta": 0.04, "entropy_coef": 0.01, "top_entropy_quantile": 0.6}])
def test_weights_and_metrics_do_not_depend_on_the_cut(directory, name, terms):
    how = {"num_iterations": 2, **terms}
    weights, metrics = run(directory, name, micro_batch_tokens=10_000, **how)
    for budget in (1, 25, 60):
        other, theirs = run(directory, name, micro_batch_tokens=budget, **how)
        torch.testing.assert_close(other, weights, rtol=0, atol=1e-11)
        assert theirs == pytest.approx(metrics, rel=1e-9, abs=1e-11)


BINDING = [
    ("m2po", {"m2_threshold": 1e-4}),
    ("clip_cov", {"cov_low": 0.01, "cov_high": 1e9, "cov_ratio": 0.1}),
    ("kl_cov", {"kl_cov_ratio": 0.2}),
    ("grpo", {"top_entropy_quantile": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), BINDING)
@pytest.mark.parametrize("updates", [1, 2])
def test_statistics_are_of_the_whole_update_dead_rows_included(directory, name, options, updates):
    """Thresholds that bind on this small model: the same weights for any micro-batches, with dead rows or without."""
    ends = []
    for budget, drop in ((10_000, False), (10_000, True), (25, True), (1, False)):
        loss = build(name, **options)
        policy, optimizer = fresh(directory)
        how = Learning(num_iterations=2, micro_batch_tokens=budget, drop_dead_rows=drop)
        learn(
            policy, None, StepProgress(plan_step(groups_of(directory), loss, updates)), loss, optimizer, how
        )
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-11)


def test_selection_by_chance_is_keyed_by_the_run_and_the_update(directory, monkeypatch):
    from grpokit.losses import UpdateStats

    keys = []
    real = UpdateStats.finish

    def spy(stats, loss, seed=0, step=0):
        keys.append((seed, step))
        return real(stats, loss, seed, step)

    monkeypatch.setattr(UpdateStats, "finish", spy)
    run(directory, "clip_cov", num_iterations=2, seed=7)
    assert keys == [(7, 0), (7, 1)]


@pytest.mark.parametrize("name", [name for name in FAMILY if build(name).drops_dead_rows])
def test_dead_rows_may_leave(directory, name):
    kept, metrics = run(directory, name, num_iterations=2, drop_dead_rows=False)
    dropped, theirs = run(directory, name, num_iterations=2, drop_dead_rows=True)
    torch.testing.assert_close(dropped, kept, rtol=0, atol=1e-12)
    assert metrics.pop("frac_tokens_dropped") == 0
    assert theirs.pop("frac_tokens_dropped") > 0.3
    assert theirs == pytest.approx(metrics, rel=1e-9, abs=1e-11)


def test_an_update_of_dead_rows_does_the_same_with_and_without_them(directory):
    """AdamW moves on zero gradients (weight decay, moments): so it must also where no row had a forward."""
    loss = build("dapo")
    ends = []
    for drop in (False, True):
        policy, optimizer = fresh(directory)
        updates = plan_step(groups_of(directory)[:1], loss)
        for _ in range(2):
            learn(policy, None, StepProgress(updates), loss, optimizer, Learning(drop_dead_rows=drop))
        assert policy.version == 2
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_old_is_the_policy_at_the_start_of_the_step(directory, updates, monkeypatch):
    """Every update after the first sees `old` of the start, bitwise; the first sees None."""
    import grpokit.policy.learn

    loss = build("grpo", beta=0.0)
    policy, optimizer = fresh(directory)
    plan = plan_step(groups_of(directory), loss, updates)
    how = Learning(num_iterations=2, drop_dead_rows=False)
    before = {}
    for k, update in enumerate(plan):
        before[k] = score(policy, update.samples, how)
    seen = []
    real = optimize

    def spy(policy, update, *rest):
        seen.append([row.old_logps for row in update.samples])
        return real(policy, update, *rest)

    monkeypatch.setattr(grpokit.policy.learn, "optimize", spy)
    learn(policy, None, StepProgress(plan), loss, optimizer, how)
    assert len(seen) == 2 * updates
    assert seen[0] == [None] * len(seen[0])
    for n, olds in enumerate(seen[1:], start=1):
        for row, old in zip(plan[n % updates].samples, olds, strict=True):
            torch.testing.assert_close(old, before[n % updates][row.index], rtol=0, atol=1e-13)


def test_no_forward_for_old_in_one_update_per_pass(directory, monkeypatch):
    """num_iterations 2, one update: two training forwards, and none to score."""
    import grpokit.policy.learn

    monkeypatch.setattr(grpokit.policy.learn, "score", None)
    _, metrics = run(directory, "dapo", num_iterations=2)
    assert metrics["ratio/max"] > 1


def test_a_correction_of_the_transformers_sampler_changes_nothing_it_should_not(directory):
    """Sampler and trainer are one model here: c = 1 but for rounding, and the diagnostics say so."""
    plain, _ = run(directory, "grpo", num_iterations=2)
    for mode in ("truncate", "mask"):
        corrected, metrics = run(directory, "grpo", num_iterations=2, correct={"correction_mode": mode})
        torch.testing.assert_close(corrected, plain, rtol=0, atol=1e-6)
        assert abs(metrics["sampler_kl"]) < 1e-6
        assert metrics["sampler/ess"] == pytest.approx(1, abs=1e-6)


def likelier(rollout):
    """Every other token is likelier to the sampler by e^0.1: its c is 0.905."""
    return dataclasses.replace(
        rollout, logps=rollout.logps + 0.1 * (torch.arange(len(rollout.logps)) % 2 == 0)
    )


def test_completions_outside_the_bounds_leave_the_counts(directory):
    """correction_keep with rejected_tokens drop: by the geometric mean of c, which depends on the length alone here."""
    bounds = {"correction_keep": "sequence_geometric", "correction_keep_low": 0.94}
    loss = build("dapo", rejected_tokens="drop", correction_mode="truncate", **bounds)
    groups = [dataclasses.replace(g, rollouts=tuple(map(likelier, g.rollouts))) for g in groups_of(directory)]
    (before,) = plan_step(groups, loss)
    policy, optimizer = fresh(directory)
    dropped = drop_rejected(before, score(policy, before.samples, Learning()), loss)
    inside = [row for row in before.samples if math.exp(-0.1 * math.ceil(row.length / 2) / row.length) > 0.94]
    assert 0 < len(inside) < len(before.samples)
    assert [(row.index, row.length) for row in dropped.samples] == [(r.index, r.length) for r in inside]
    metrics = values(learn(policy, None, StepProgress([before]), loss, optimizer, Learning()))
    outside = before.num_tokens - sum(row.length for row in inside)
    assert metrics["sampler/masked"] == pytest.approx(outside / before.num_tokens)
    assert metrics["sampler/log_ppl_diff"] > 0
    assert metrics["sampler/ppl"] < metrics["sampler/trainer_ppl"]


@pytest.mark.parametrize(
    "mask",
    [
        {"correction_mode": "mask", "correction_low": 0.999, "correction_high": 1.5},
        {"correction_mode": "reject", "correction_high": 1.05},
        {"correction_mode": "reject", "correction_estimator": "k3", "correction_high": 1e-3},
    ],
)
def test_rejected_tokens_keep_or_leave_the_counts(directory, mask):
    """A mask that rejects about half of the tokens: kept, they stay in the denominators; dropped, they don't."""
    loss = {k: build("dapo", rejected_tokens=k, **mask) for k in ("keep", "drop")}
    groups = [dataclasses.replace(g, rollouts=tuple(map(likelier, g.rollouts))) for g in groups_of(directory)]
    (kept,), (before,) = (plan_step(groups, loss[k]) for k in ("keep", "drop"))
    policy, _ = fresh(directory)
    dropped = drop_rejected(before, score(policy, before.samples, Learning()), loss["drop"])
    halves = {row.index: row.length // 2 for row in before.samples if row.length > 1}
    assert {row.index: row.length for row in dropped.samples} == halves
    assert kept.num_tokens > dropped.num_tokens == sum(row.length for row in dropped.samples)
    assert all(row.weight == pytest.approx(1 / dropped.num_tokens) for row in dropped.samples)
    for row in dropped.samples:
        assert len(row.sampler_logps) == row.length == int(row.trainable.sum())
    ends = []
    for k in ("keep", "drop"):
        policy, optimizer = fresh(directory)
        metrics = values(
            learn(policy, None, StepProgress(plan_step(groups, loss[k])), loss[k], optimizer, Learning())
        )
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
        assert metrics["sampler/masked"] == pytest.approx(0.5, abs=0.1)  # measured before they leave
    assert not torch.allclose(*ends)


def test_the_kl_term_reaches_rows_without_advantage(directory):
    plain, _ = run(directory, "grpo")
    pulled, metrics = run(directory, "grpo", beta=0.5)
    assert metrics["kl"] > 0
    assert metrics["frac_tokens_dropped"] == 0
    assert not torch.allclose(plain, pulled)


def test_metrics_are_declared_with_their_kind(directory):
    for name in FAMILY:
        loss = build(name, beta=0.04)
        policy, optimizer = fresh(directory)
        metrics = learn(
            policy, policy, StepProgress(plan_step(groups_of(directory), loss)), loss, optimizer, Learning()
        )
        for key, metric in metrics.items():
            assert METRICS[declared_name(key)].kind == metric.kind, key


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(directory):
    loss = build("grpo")
    policy, optimizer = fresh(directory)
    (update,) = plan_step(groups_of(directory), loss)
    rows = tuple(dataclasses.replace(row, weight=float("nan")) for row in update.samples)
    before = [p.detach().clone() for p in policy.parameters()]
    with pytest.raises(NonFiniteError, match="not finite"):
        optimize(policy, dataclasses.replace(update, samples=rows), loss, optimizer, Learning())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert policy.version == 0


@pytest.mark.parametrize("bad", [1, 5, 7])
def test_the_micro_batch_that_is_written_down_is_the_bad_one(directory, bad):
    loss = build("grpo")
    policy, optimizer = fresh(directory)
    (update,) = plan_step(groups_of(directory), loss)
    rows = tuple(
        dataclasses.replace(row, weight=float("nan")) if number == bad else row
        for number, row in enumerate(update.samples)
    )
    update, found = dataclasses.replace(update, samples=rows), []
    written = Learning(
        micro_batch_tokens=30,
        drop_dead_rows=False,
        dump=lambda offender: found.append(offender) or Path("here"),
    )
    with pytest.raises(NonFiniteError, match="The micro-batch is in here"):
        optimize(policy, update, loss, optimizer, written)
    (offender,) = found
    assert rows[bad].index in [row.index for row in offender.samples]
    assert len(offender.samples) < len(rows)
    assert offender.what == "loss"

    def full_disk(offender):
        raise OSError("No space left on device")

    with pytest.raises(NonFiniteError, match=r"not finite numbers.*could not be written: No space left"):
        optimize(policy, update, loss, optimizer, dataclasses.replace(written, dump=full_disk))


def test_scoring_equals_the_training_pass(directory):
    policy, _ = fresh(directory)
    rows = plan_step(groups_of(directory), build("grpo"))[0].samples
    scored = score(policy, rows, Learning(micro_batch_tokens=30))
    for micro in micro_batches(rows, 30):
        scores, _ = policy(micro, build("grpo"))
        assert torch.equal(torch.cat([scored[row.index] for row in micro.samples]), scores.logps.detach())


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_an_empty_micro_batch_measures_nothing(layout):
    """A rank without samples computes one, so that it takes part in the collectives."""
    found = micro_mismatch(collate([], layout, "cpu"), torch.zeros(0), make_loss("grpo"), "full")
    assert {name: math.isnan(metric.value) for name, metric in found.items()} == dict.fromkeys(
        ("sampler/ppl", "sampler/trainer_ppl", "sampler/log_ppl_diff", "sampler/chi2_seq"), True
    )
