"""Values: golden steps, the table of gradient weights, the oracle of loops, gradcheck, on-policy identities."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpokit.losses import Counts, LossBatch, make_loss, policy_loss, sequence_weights
from helpers import oracle
from helpers.family_data import MISSION, WEIGHTS, build, flat, make_step, run, seeds, weights_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "seed_losses.json").read_text())
T64 = torch.float64


def t64(values):
    return torch.tensor(values, dtype=T64)


def test_the_golden_file_is_whole():
    assert len(GOLDEN) == 24
    assert {case["loss_type"] for case in GOLDEN} == set(MISSION)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["name"])
def test_the_golden_step_has_its_recorded_values(case):
    """Loss and gradient of whole steps, computed in 50-digit arithmetic, to 1e-12."""
    flags = dict(case["flags"])
    gain = flags.pop("gain", None)
    if gain:
        flags["sapo_gain"] = {"seed": "none", "paper": "paper"}[gain]
    loss = make_loss(case["loss_type"], **flags)
    ranks = case["ranks"]
    lengths = [[t64(m["mask"]).sum(-1).long() for m in rank] for rank in ranks]
    own = []
    for rank in lengths:
        counts = Counts.of(rank[0])
        for slice_lengths in rank[1:]:
            counts = counts + Counts.of(slice_lengths)
        own.append(counts)
    total = torch.zeros((), dtype=T64)
    for rank, rank_lengths, counts, want in zip(
        ranks, lengths, Counts.across_ranks(own), case["grads"], strict=True
    ):
        for micro, slice_lengths, want_grad in zip(rank, rank_lengths, want, strict=True):
            logps = t64(micro["logps"]).requires_grad_()
            batch = LossBatch.from_padded(
                t64(micro["mask"]),
                logps=logps,
                old_logps=t64(micro["old_logps"]),
                ref_logps=t64(micro["ref_logps"]) if "ref_logps" in micro else None,
                advantages=t64(micro["advantages"]),
                weights=sequence_weights(loss, slice_lengths, counts),
            )
            share = policy_loss(loss, batch).loss
            share.backward()
            total = total + share.detach()
            torch.testing.assert_close(logps.grad, t64(want_grad), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(total, t64(case["loss"]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("row", WEIGHTS, ids=lambda r: f"rho={r[0]}")
def test_gradient_weights(row):
    rho, *want = row
    clip = make_loss("dapo", delta=2.5)
    cases = [(clip, 1), (clip, -1), (make_loss("sapo"), 1), (make_loss("sapo"), -1), (make_loss("cispo"), 1)]
    for (loss, sign), g in zip(cases, want, strict=True):
        logps = t64([-1.0]).requires_grad_()
        old = logps.detach() - torch.tensor(rho, dtype=T64).log()
        batch = LossBatch(
            logps=logps,
            old_logps=old,
            advantages=t64([sign]),
            weights=t64([1]),
            sequence_ids=torch.tensor([0]),
        )
        policy_loss(loss, batch).loss.backward()
        assert float(-logps.grad / sign) == pytest.approx(g, abs=5.1e-5)


@given(
    name=st.sampled_from(MISSION),
    seed=seeds,
    beta=st.sampled_from([0.0, 0.04]),
    num_ranks=st.integers(1, 3),
    spread=st.sampled_from([0.1, 1.0, 40.0]),
)
def test_against_the_oracle(name, seed, beta, num_ranks, spread):
    update = make_step(seed, num_ranks=num_ranks, spread=spread)
    loss = build(name, beta=beta)
    got = run(loss, flat(loss, update), [slice(None)])
    order = [torch.nonzero(update.ranks == r).flatten().tolist() for r in range(num_ranks)]
    pick = lambda x: [[x[i].tolist() for i in rows] for rows in order]  # noqa: E731
    step = oracle.Step(
        pick(update.logps), pick(update.old), pick(update.advantages), pick(update.mask), pick(update.ref)
    )
    want_loss, want_grads = oracle.step_loss(
        name, step, beta=beta, max_completion_length=loss.max_completion_length
    )
    padded = torch.zeros_like(update.logps)
    for rows, grads in zip(order, want_grads, strict=True):
        for i, g in zip(rows, grads, strict=True):
            padded[i] = t64(g)
    want = padded[update.mask]
    scale = max(1.0, float(want.abs().max()) if want.numel() else 1.0)
    torch.testing.assert_close(got.gradient, want, rtol=1e-11, atol=1e-13 * scale)
    torch.testing.assert_close(got.loss, t64(want_loss), rtol=1e-11, atol=1e-11 * max(1.0, abs(want_loss)))


@pytest.mark.parametrize("name", [n for n in MISSION if n != "cispo"])  # cispo's ratio is detached
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_every_loss_passes_gradcheck(name, beta):
    update = make_step(3, spread=1.0)
    loss = build(name, beta=beta)
    batch = flat(loss, update)

    def share(logps):
        return policy_loss(loss, dataclasses.replace(batch, logps=logps)).loss

    assert torch.autograd.gradcheck(share, (batch.logps.clone().requires_grad_(),))


@given(name=st.sampled_from(MISSION), seed=seeds)
def test_on_policy_gradient_is_the_policy_gradient(name, seed):
    """With old_logps=None the gradient is that of Σ w·(−A·logp), for all six (sapo with its paper gain)."""
    update = dataclasses.replace(make_step(seed), old=None)
    loss = build(name)
    batch = flat(loss, update)
    found = run(loss, batch, [slice(None)])
    grad, metrics = found.gradient, found.metrics
    torch.testing.assert_close(grad, -batch.weights * batch.advantages, rtol=1e-12, atol=1e-15)
    if (batch.advantages != 0).any():
        assert metrics["ratio/max"] == 1.0
        assert metrics["ratio/ess"] == pytest.approx(1.0, abs=1e-12)


def test_bare_sapo_gate_scales_the_on_policy_gradient_by_a_quarter_tau():
    update = dataclasses.replace(make_step(5), old=None)
    batch = flat(build("sapo"), update)
    grad = run(build("sapo", sapo_gain="none"), batch, [slice(None)]).gradient
    tau = torch.where(batch.advantages > 0, t64(1.0), t64(1.05))
    torch.testing.assert_close(grad, -batch.weights * batch.advantages * tau / 4, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", MISSION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratios_of_100_are_finite(name, dtype, sign):
    far = torch.tensor([100.0, -100.0, 88.0, 20.0, -20.0, 0.0], dtype=dtype)
    logps = torch.full((6,), -1.0, dtype=dtype, requires_grad=True)
    batch = LossBatch(
        logps=logps,
        old_logps=logps.detach() - far,
        ref_logps=logps.detach() + far,
        advantages=torch.full((6,), float(sign), dtype=dtype),
        weights=torch.full((6,), 1 / 6, dtype=dtype),
        sequence_ids=torch.arange(6),
    )
    out = policy_loss(build(name, beta=0.04), batch)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(logps.grad).all()
    assert all(torch.isfinite(torch.tensor(m.value)) for m in out.metrics.values())
    assert out.metrics["ratio/clamped"].value == 0.5  # 100, −100 and 88 of six


def test_half_precision_log_probs_are_computed_in_float32():
    logps = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(2, dtype=torch.bfloat16)
    batch = LossBatch(
        logps=logps,
        old_logps=logps.detach() - 0.1,
        advantages=ones,
        weights=ones,
        sequence_ids=torch.arange(2),
    )
    assert policy_loss(make_loss("grpo"), batch).loss.dtype == torch.float32


def test_weights_by_hand():
    """Two ranks; lengths 2, 0 | 3: N = 2, tokens 5, P = 2. Numbers by hand from the reductions' formulas."""
    lengths = [torch.tensor([2, 0]), torch.tensor([3])]
    groups = [torch.tensor([0, 1]), torch.tensor([0])]
    counts = Counts.across_ranks([Counts.of(n, g) for n, g in zip(lengths, groups, strict=True)])
    want = {
        "sequence_mean": [1 / 4, 0, 1 / 6],
        "rank_token_mean": [1 / 4, 0, 1 / 6],
        "token_mean": [1 / 5, 0, 1 / 5],
        "constant_length": [1 / 32, 0, 1 / 32],
        "sequence_sum": [1 / 2, 0, 1 / 2],
        "prompt_mean": [1 / 5, 0, 1 / 5],  # one group has a token: Q = 1, and it has 5 of them
    }
    for reduction, numbers in want.items():
        length = {"max_completion_length": 16} if reduction == "constant_length" else {}
        loss = make_loss("grpo", reduction=reduction, **length)
        got = [sequence_weights(loss, n, c, g) for n, c, g in zip(lengths, counts, groups, strict=True)]
        torch.testing.assert_close(torch.cat(got), t64(numbers), rtol=1e-15, atol=0)


def test_all_masked_weights_are_zero():
    update = make_step(0)
    update.mask[:] = False
    assert (weights_of(build("grpo"), update) == 0).all()
