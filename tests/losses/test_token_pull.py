"""What a loss does to each token: its pull is the negative gradient, cut or whole, and a clipped token has none."""

from __future__ import annotations

import pytest
import torch

from grpokit.losses import LossBatch, make_loss, token_pull
from helpers.family_data import FAMILY, build, flat, gather, make_step, run


def parts_of(batch, count=3):
    """The batch's tokens, dealt to `count` slices in turn."""
    place = torch.arange(len(batch))
    return [place % count == k for k in range(count)]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("extra", [{}, {"beta": 0.1}], ids=["bare", "with KL"])
def test_the_pull_is_the_negative_gradient_of_the_loss(name, extra):
    loss = build(name, **extra)
    for seed in range(6):
        batch = flat(loss, make_step(seed))
        if not len(batch):
            continue
        whole = torch.ones(len(batch), dtype=torch.bool)
        stats = gather(loss, batch, [whole]) if loss.coupling != "token" else None
        want = -run(loss, batch, [whole]).gradient
        found = token_pull(loss, batch, stats)
        assert torch.allclose(found.pull, want, rtol=1e-12, atol=1e-14)
        if not extra:
            assert torch.equal(found.pull, found.policy)


@pytest.mark.parametrize("name", FAMILY)
def test_some_of_an_updates_tokens_have_the_pull_that_they_have_in_the_whole(name):
    loss = build(name)
    batch = flat(loss, make_step(4))
    whole = torch.ones(len(batch), dtype=torch.bool)
    stats = gather(loss, batch, [whole]) if loss.coupling != "token" else None
    want = token_pull(loss, batch, stats).pull
    for part in parts_of(batch):
        assert torch.allclose(
            token_pull(loss, batch.select(part), stats).pull, want[part], rtol=1e-12, atol=1e-14
        )


def four_tokens(**fields):
    """ρ = 1.5, 1.5, 0.5, 0.5 with A = 1, −1, 1, −1."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    old = torch.full((4,), -1.0, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    ids, weights = torch.arange(4), torch.full((4,), 0.25, dtype=torch.float64)
    return LossBatch(
        logps=old + ratio.log(),
        old_logps=old,
        advantages=advantages,
        weights=weights,
        sequence_ids=ids,
        **fields,
    )


def test_a_clipped_token_has_no_pull():
    # clipped where the ratio has gone further than the advantage asks for: ρ 1.5 with A > 0, ρ 0.5 with A < 0
    found = token_pull(make_loss("grpo"), four_tokens())
    assert found.pull.tolist() == pytest.approx([0.0, -0.25 * 1.5, 0.25 * 0.5, 0.0])
    assert found.factor.tolist() == [1.0] * 4


def test_a_clipped_token_has_the_pull_of_the_kl_alone():
    ref = torch.full((4,), -2.0, dtype=torch.float64)
    found = token_pull(make_loss("grpo", beta=0.1), four_tokens(ref_logps=ref))
    assert found.policy[0] == 0
    assert found.pull[0] != 0


def test_a_token_that_a_correction_masks_has_the_factor_0():
    sampler = torch.tensor([-1.0, -1.0, -9.0, -1.0], dtype=torch.float64)  # c = e^8 for the third
    loss = make_loss("grpo", correction_mode="mask", correction_low=0.5, correction_high=5.0)
    found = token_pull(loss, four_tokens(sampler_logps=sampler))
    assert found.factor.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert found.pull[2] == 0


def test_nothing_is_left_in_the_graph():
    batch = four_tokens()
    token_pull(
        make_loss("gspo"), batch if batch.lengths is not None else four_tokens(lengths=torch.ones(4).long())
    )
    assert not batch.logps.requires_grad
