"""Properties of the losses beside the cuts (test_family_properties.py): counts, weights, dead rows, empty slices, NaN."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpokit.losses import REDUCTIONS, Counts, LossBatch, make_loss, policy_loss, sequence_weights
from helpers.family_data import FAMILY, assert_same, build, flat, gather, make_step, run, seeds, weights_of

WHOLE = [slice(None)]


@given(seed=seeds, parts=st.integers(1, 4))
def test_counts_of_slices_add_up(seed, parts):
    """Counts added over slices of rows, in any order, are those of the whole: weights are bitwise equal."""
    step = make_step(seed)
    lengths = step.mask.sum(-1)
    part_of = torch.randint(0, parts, (len(lengths),), generator=torch.Generator().manual_seed(seed))
    joined = Counts.of(lengths[part_of == 0], step.groups[part_of == 0])
    for p in range(1, parts):
        joined = joined + Counts.of(lengths[part_of == p], step.groups[part_of == p])
    assert joined == Counts.of(lengths, step.groups)


@pytest.mark.parametrize("name", [name for name in FAMILY if build(name).drops_dead_rows])
@given(seed=seeds)
def test_dead_rows_weigh_nothing(name, seed):
    """Sequences with A = 0 leave loss, gradient and metrics as they are when they go; statistics are of all."""
    loss, step = build(name), make_step(seed)
    batch = flat(loss, step)
    stats = gather(loss, batch, WHOLE) if loss.coupling != "token" else None
    alive = torch.nonzero(batch.advantages != 0).flatten()
    kept = run(loss, batch.select(alive), WHOLE, stats=stats)
    back = {f: torch.zeros(len(batch), dtype=torch.float64) for f in ("gradient", "entropy_gradient")}
    for field, values in back.items():
        values[alive] = getattr(kept, field)
    assert_same(dataclasses.replace(kept, **back), run(loss, batch, WHOLE))


def test_with_a_kl_or_entropy_term_no_row_is_dead():
    assert not build("grpo", beta=0.04).drops_dead_rows
    assert not build("grpo", entropy_coef=0.01).drops_dead_rows


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_slice_is_a_connected_zero(name, dtype):
    source = torch.zeros(3, dtype=dtype, requires_grad=True)
    nan = torch.full((3, 1), float("nan"), dtype=dtype)
    loss = build(name, beta=0.04)
    nothing = LossBatch.from_padded(
        torch.zeros(3, 1, dtype=torch.bool),
        logps=source[:, None] * nan,
        ref_logps=nan,
        sampler_logps=nan,
        advantages=torch.zeros(3, dtype=dtype),
        weights=torch.zeros(3, dtype=dtype),
        group_ids=torch.zeros(3, dtype=torch.int64),
    )
    out = policy_loss(loss, nothing, gather(loss, nothing, WHOLE) if loss.coupling != "token" else None)
    out.loss.backward()
    assert out.loss.item() == 0
    assert source.grad is not None


@pytest.mark.parametrize("name", FAMILY)
@given(seed=seeds)
def test_nan_under_the_mask_reaches_no_gradient(name, seed):
    """make_step puts NaN and ±inf under the mask; the padded leaf's gradient is exactly 0 there."""
    loss, step = build(name, beta=0.04), make_step(seed)
    logps = step.logps.clone().requires_grad_()
    batch = flat(loss, dataclasses.replace(step, logps=logps))
    out = policy_loss(loss, batch, gather(loss, batch, WHOLE) if loss.coupling != "token" else None)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(logps.grad).all()
    assert (logps.grad[~step.mask] == 0).all()


def test_a_denominator_after_the_cut_would_be_seen():
    """These properties can fail: a reduction that counts the slice instead of the update breaks the cut."""
    loss, step = build("dapo"), make_step(1)
    batch = flat(loss, step)
    half = len(batch) // 2
    parts = [torch.arange(half), torch.arange(half, len(batch))]
    whole = run(loss, batch, WHOLE)

    def averaging(loss, batch, stats):
        wrong = dataclasses.replace(batch, weights=torch.full_like(batch.weights, 1 / len(batch)))
        return policy_loss(loss, wrong, stats)

    with mock.patch("helpers.family_data.policy_loss", averaging):
        wrong = run(loss, batch, parts)
    with pytest.raises(AssertionError):
        assert_same(wrong, whole)


def test_counts_must_be_of_the_whole_update():
    with pytest.raises(ValueError, match="whole update"):
        sequence_weights(make_loss("dapo"), torch.tensor([3, 4]), Counts.of(torch.tensor([3])))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(seed=seeds)
def test_weights_under_a_permutation_of_rows(reduction, seed):
    step = make_step(seed)
    loss = build("grpo", reduction)
    order = torch.randperm(len(step.mask), generator=torch.Generator().manual_seed(seed))
    moved = dataclasses.replace(
        step, mask=step.mask[order], groups=step.groups[order], ranks=step.ranks[order]
    )
    torch.testing.assert_close(weights_of(loss, moved), weights_of(loss, step)[order], rtol=1e-15, atol=0)
