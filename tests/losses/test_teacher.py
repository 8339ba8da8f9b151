"""The teacher's term: value and gradient by slow loops, under any cut, beside every kind of loss."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpokit.losses import make_loss, policy_loss
from helpers.family_data import assert_same, build, flat, gather, make_step, run, seeds

WHOLE = [slice(None)]
KINDS = ["grpo", "gspo", "real", "m2po", "clip_cov", "vespo", "dr_grpo"]


def taught(loss, seed, on_policy=False):
    """A batch with a teacher, whose weights are 1 / all tokens."""
    step = make_step(seed)
    batch = flat(loss, dataclasses.replace(step, old=None) if on_policy else step)
    noise = torch.randn(len(batch), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.full((len(batch),), 1 / max(1, len(batch)), dtype=torch.float64)
    return dataclasses.replace(batch, teacher_logps=batch.logps.detach() + noise, teacher_weights=weights)


@pytest.mark.parametrize("gradient", ["k2", "ratio"])
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=8)
@given(seed=seeds)
def test_it_adds_the_mean_over_all_tokens(name, gradient, seed):
    """Value: coef · mean(logp − teacher). Gradient at a token: (logp − teacher)/N, times ρ, and then ρ/N more, for `ratio`."""
    plain = build(name)
    loss = build(name, teacher_coef=0.7, teacher_kl_gradient=gradient)
    batch = taught(loss, seed)
    if not len(batch):
        return
    leaf, other = (batch.logps.detach().clone().requires_grad_() for _ in range(2))
    stats = gather(loss, batch, WHOLE) if loss.coupling != "token" else None
    out = policy_loss(loss, dataclasses.replace(batch, logps=leaf), stats)
    without = policy_loss(plain, dataclasses.replace(batch, logps=other), stats)
    out.loss.backward()
    without.loss.backward()
    logps, old, teacher = (x.tolist() for x in (batch.logps.detach(), batch.old_logps, batch.teacher_logps))
    value, slopes = 0.0, []
    for p, o, t in zip(logps, old, teacher, strict=True):
        ratio = math.exp(min(20, max(-20, p - o)))
        value += 0.7 * (p - t) * (ratio if gradient == "ratio" else 1) / len(logps)
        inside = abs(p - o) < 20
        slope = (p - t) if gradient == "k2" else ratio * ((p - t) * inside + 1)
        slopes.append(0.7 * slope / len(logps))
    assert float((out.loss - without.loss).detach()) == pytest.approx(value, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        leaf.grad - other.grad, torch.tensor(slopes, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    assert out.metrics["loss/teacher"].value == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert out.metrics["loss/policy"].value == pytest.approx(
        float(without.loss.detach()), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=10)
@given(seed=seeds, parts=st.sampled_from([2, 5]), on_policy=st.booleans())
def test_any_cut_gives_the_same(name, seed, parts, on_policy):
    loss = build(name, teacher_coef=0.7, beta=0.1, entropy_coef=0.01)
    batch = taught(loss, seed, on_policy)
    part_of = torch.randint(0, parts, (len(batch),), generator=torch.Generator().manual_seed(seed))
    cut = [torch.nonzero(part_of == p).flatten() for p in range(parts)]
    whole = run(loss, batch, WHOLE)
    assert_same(run(loss, batch, cut), whole)
    total = sum(whole.metrics[f"loss/{n}"] for n in ("policy", "kl", "entropy", "teacher"))
    assert total == pytest.approx(float(whole.loss), rel=1e-9, abs=1e-12)


def test_no_row_is_dead_with_a_teacher():
    assert make_loss("grpo").drops_dead_rows
    assert not make_loss("grpo", teacher_coef=1.0).drops_dead_rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_coef": -1.0}, "teacher_coef -1.0"),
        ({"teacher_coef": float("nan")}, "teacher_coef nan: must be a finite number"),
        ({"teacher_coef": 1.0, "teacher_kl_gradient": "own"}, "is not one of k2, ratio"),
    ],
)
def test_what_can_not_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_loss("grpo", **options)


def test_without_the_teachers_log_probs_it_says_so():
    loss = make_loss("grpo", teacher_coef=1.0)
    with pytest.raises(ValueError, match=r"LossBatch\.teacher_logps and teacher_weights"):
        policy_loss(loss, flat(loss, make_step(1)))


@pytest.mark.parametrize("name", ["dapo", "real"])
def test_formula_and_description_have_it(name):
    """real's formula gives the whole loss itself."""
    loss = make_loss(name, teacher_coef=0.5)
    assert r"\log\pi_{teacher}" in loss.formula.splitlines()[0]
    assert "teacher_coef 0.5" in str(loss)
    assert "teacher" not in make_loss(name).formula + str(make_loss(name))
