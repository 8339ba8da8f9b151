"""One gradient: loss, gradient and every metric are the same however an update is cut."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_data import (
    MISSION,
    assert_same,
    betas,
    build,
    flat_batch,
    make_update,
    mission,
    run_slices,
    seeds,
    weights_of,
)

from grpokit.losses import REDUCTIONS, Counts, LossBatch, make_loss, policy_loss

WHOLE = [slice(None)]


def random_cut(num_tokens, num_parts, seed):
    """Token indices dealt at random to parts: cuts inside sequences too, and parts that stay empty."""
    g = torch.Generator().manual_seed(seed)
    part_of = torch.randint(0, num_parts, (num_tokens,), generator=g)
    return [torch.nonzero(part_of == p).flatten() for p in range(num_parts)]


@given(name=mission, seed=seeds, beta=betas, parts=st.integers(1, 9), on_policy=st.booleans())
def test_any_cut(name, seed, beta, parts, on_policy):
    loss, update = build(name, beta=beta), make_update(seed, on_policy=on_policy)
    batch = flat_batch(loss, update)
    assert_same(run_slices(loss, batch, random_cut(len(batch), parts, seed)), run_slices(loss, batch, WHOLE))


@given(name=mission, seed=seeds, beta=betas)
def test_permutation_of_tokens_and_rows(name, seed, beta):
    loss, update = build(name, beta=beta), make_update(seed)
    batch = flat_batch(loss, update)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    total, grad, metrics = run_slices(loss, batch.select(order), WHOLE)
    back = torch.empty_like(grad)
    back[order] = grad
    assert_same((total, back, metrics), run_slices(loss, batch, WHOLE))


@given(name=mission, seed=seeds, beta=betas, rows=st.integers(0, 3), columns=st.integers(0, 3))
def test_extra_padding(name, seed, beta, rows, columns):
    """Padding rows and columns, full of NaN, change nothing: also not through the counts."""
    loss, update = build(name, beta=beta), make_update(seed)

    def pad(x, fill):
        return torch.nn.functional.pad(x, (0, columns) + ((0, rows) if x.ndim > 1 else ()), value=fill)

    nan = float("nan")
    padded = dataclasses.replace(
        update,
        mask=pad(update.mask, False),
        logps=pad(update.logps, nan),
        old=pad(update.old, nan),
        ref=pad(update.ref, nan),
        advantages=torch.nn.functional.pad(update.advantages, (0, rows), value=nan),
        ranks=torch.nn.functional.pad(update.ranks, (0, rows)),
    )
    got = run_slices(loss, flat_batch(loss, padded), WHOLE)
    assert_same(got, run_slices(loss, flat_batch(loss, update), WHOLE))


@given(name=mission, seed=seeds, beta=betas, num_ranks=st.sampled_from([2, 3, 4]))
def test_ranks(name, seed, beta, num_ranks):
    """Each rank computes its own weights from the joined counts; shares are summed. bnpo: fixed rank contents."""
    loss = build(name, beta=beta)
    update = make_update(seed, num_ranks=num_ranks)
    one = (
        update
        if name == "bnpo"
        else dataclasses.replace(update, ranks=torch.zeros_like(update.ranks), num_ranks=1)
    )
    batch = flat_batch(loss, update)
    rank_of_token = update.ranks[batch.sequence_ids]
    per_rank = [torch.nonzero(rank_of_token == r).flatten() for r in range(num_ranks)]
    assert_same(run_slices(loss, batch, per_rank), run_slices(loss, flat_batch(loss, one), WHOLE))


@given(name=mission, seed=seeds, parts=st.integers(1, 4))
def test_counts_of_slices_add_up(name, seed, parts):
    """Counts added over slices of rows, in any order, are those of the whole: weights are bitwise equal."""
    update = make_update(seed)
    lengths = update.mask.sum(-1)
    groups = torch.arange(len(lengths)) // 2
    cut = random_cut(len(lengths), parts, seed)
    joined = Counts.of(lengths[cut[0]], groups[cut[0]])
    for part in cut[1:]:
        joined = joined + Counts.of(lengths[part], groups[part])
    assert joined == Counts.of(lengths, groups)


@given(seed=seeds, name=mission)
def test_dead_rows_weigh_nothing(seed, name):
    """Without a KL term, tokens with A = 0 leave loss, gradient and metrics as they are when they go."""
    loss, update = build(name), make_update(seed)
    batch = flat_batch(loss, update)
    alive = torch.nonzero(batch.advantages != 0).flatten()
    assert loss.drops_dead_rows
    total, grad, metrics = run_slices(loss, batch.select(alive), WHOLE)
    padded = torch.zeros(len(batch), dtype=torch.float64)
    padded[alive] = grad
    assert_same((total, padded, metrics), run_slices(loss, batch, WHOLE))


def test_with_a_kl_term_no_row_is_dead():
    assert not build("grpo", beta=0.04).drops_dead_rows


@pytest.mark.parametrize("name", MISSION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_slice_is_a_connected_zero(name, dtype):
    source = torch.zeros(3, dtype=dtype, requires_grad=True)
    nothing = LossBatch.from_padded(
        torch.zeros(3, 1, dtype=torch.bool),
        logps=source[:, None] * float("nan"),
        ref_logps=torch.full((3, 1), float("nan"), dtype=dtype),
        advantages=torch.zeros(3, dtype=dtype),
        weights=torch.zeros(3, dtype=dtype),
    )
    out = policy_loss(build(name, beta=0.04), nothing)
    out.loss.backward()
    assert out.loss.item() == 0
    assert source.grad is not None


@given(name=mission, seed=seeds)
def test_nan_under_the_mask_reaches_no_gradient(name, seed):
    """make_update puts NaN and ±inf under the mask; the padded leaf's gradient is exactly 0 there."""
    loss, update = build(name, beta=0.04), make_update(seed)
    logps = update.logps.clone().requires_grad_()
    batch = LossBatch.from_padded(
        update.mask,
        logps=logps,
        old_logps=update.old,
        ref_logps=update.ref,
        advantages=update.advantages,
        weights=weights_of(loss, update),
    )
    out = policy_loss(loss, batch)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(logps.grad).all()
    assert (logps.grad[~update.mask] == 0).all()


def test_a_denominator_after_the_cut_would_be_seen():
    """These properties can fail: a reduction that counts the slice instead of the update breaks the cut."""
    loss, update = build("dapo"), make_update(1)
    batch = flat_batch(loss, update)
    half = len(batch) // 2
    parts = [torch.arange(half), torch.arange(half, len(batch))]
    whole = run_slices(loss, batch, WHOLE)

    def averaging(loss, batch):
        wrong = dataclasses.replace(batch, weights=torch.full_like(batch.weights, 1 / len(batch)))
        return policy_loss(loss, wrong)

    with mock.patch("losses_data.policy_loss", averaging):
        wrong = run_slices(loss, batch, parts)
    with pytest.raises(AssertionError):
        assert_same(wrong, whole)


def test_counts_must_be_of_the_whole_update():
    from grpokit.losses import sequence_weights

    with pytest.raises(ValueError, match="whole update"):
        sequence_weights(make_loss("dapo"), torch.tensor([3, 4]), Counts.of(torch.tensor([3])))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(seed=seeds)
def test_weights_under_a_permutation_of_rows(reduction, seed):
    from grpokit.losses import sequence_weights

    update = make_update(seed)
    lengths, groups = update.mask.sum(-1), torch.arange(5) // 2
    length = {"max_completion_length": 9} if reduction == "constant_length" else {}
    loss = make_loss("grpo", reduction=reduction, **length)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    want = sequence_weights(loss, lengths, Counts.of(lengths, groups), groups)
    got = sequence_weights(loss, lengths[order], Counts.of(lengths[order], groups[order]), groups[order])
    torch.testing.assert_close(got, want[order], rtol=1e-15, atol=0)
