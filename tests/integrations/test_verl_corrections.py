"""Corrections and their diagnostics against the functions of verl 0.9.1 themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from grpokit.losses import make_loss, policy_loss
from grpokit.losses.correction import diagnostics, of_sequences
from helpers.family_data import flat, gather, make_step

pytestmark = pytest.mark.integrations

CASES = {
    "token": ({"rollout_is": "token"}, {"correction": "verl-tis"}),
    "sequence": (
        {"rollout_is": "sequence", "rollout_is_threshold": 1.5},
        {"correction_mode": "truncate", "correction_level": "sequence_product", "correction_cap": 1.5},
    ),
    "icepop": ({"rollout_is": "token", "rollout_is_threshold": "0.5_5"}, {"correction": "icepop"}),
    "normalised tokens": (
        {"rollout_is": "token", "rollout_is_batch_normalize": True},
        {"correction": "verl-tis", "correction_normalize": True},
    ),
    "normalised sequences": (
        {"rollout_is": "sequence", "rollout_is_batch_normalize": True},
        {"correction_mode": "truncate", "correction_level": "sequence_product", "correction_normalize": True},
    ),
}
REJECTED = {
    f"{word}_{k}": {
        "correction_mode": "reject",
        "correction_estimator": k,
        "correction_level": level,
        "correction_high": 1.3 if k == "k1" else 0.1,
    }
    for word, level in (
        ("token", "token"),
        ("seq_sum", "sequence_product"),
        ("seq_mean", "sequence_geometric"),
        ("seq_max", "sequence_max"),
    )
    for k in ("k1", "k2", "k3")
    if (word, k) != ("seq_max", "k1")
}


def padded(seed):
    """verl's tensors, zeros under the mask, of an update with sequences of one token and more."""
    step = make_step(seed, spread=0.6)
    old, mu = (torch.where(step.mask, x, 0.0) for x in (step.old, step.sampler))
    return step, old, mu, step.mask.double()


def weights_of(step, **options):
    """grpokit's factor of every trainable token: ℓ's gradient with the correction over that without."""
    grads = []
    for how in (options, {}):
        loss = make_loss("reinforce", **how)
        batch = flat(loss, step, torch.ones(step.mask.shape[0], dtype=torch.float64))
        leaf = batch.logps.detach().clone().requires_grad_()
        batch = dataclasses.replace(batch, logps=leaf, advantages=torch.ones_like(leaf))
        stats = gather(loss, batch, [slice(None)]) if loss.coupling != "token" else None
        policy_loss(loss, batch, stats).loss.backward()
        grads.append(leaf.grad)
    return grads[0] / grads[1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("case", CASES)
def test_weights_are_verls(case, seed):
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    theirs, ours = CASES[case]
    step, old, mu, mask = padded(seed)
    if not mask.any():
        return
    want, _ = compute_rollout_correction_weights(old - mu, mask, **theirs)
    # verl adds 1e-8 to the number of tokens that it divides by.
    torch.testing.assert_close(weights_of(step, **ours), want[step.mask], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("option", REJECTED)
def test_rejections_are_verls(option, seed):
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_rejection_mask

    step, old, mu, mask = padded(seed)
    if not mask.any():
        return
    threshold = REJECTED[option]["correction_high"]
    want, _ = compute_rollout_rejection_mask(old - mu, mask, option, str(threshold))
    assert torch.equal(weights_of(step, **REJECTED[option]), want[step.mask])


@pytest.mark.parametrize("seed", range(8))
def test_diagnostics_are_verls(seed):
    from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics

    step, old, mu, mask = padded(seed)
    rows = mask.any(1)
    if not rows.any():
        return
    want = compute_offpolicy_metrics(old[rows], mu[rows], mask[rows])
    lengths = step.mask[rows].sum(1)
    ours = of_sequences(old[step.mask], mu[step.mask], lengths)
    pairs = {
        "rollout_ppl": "sampler/ppl",
        "training_ppl": "sampler/trainer_ppl",
        "log_ppl_diff": "sampler/log_ppl_diff",
        "chi2_seq": "sampler/chi2_seq",
    }
    for theirs, name in pairs.items():
        assert float(ours[name].mean()) == pytest.approx(want[theirs], rel=1e-6, abs=1e-6)
    x = (old - mu)[step.mask]
    tokens = diagnostics(x, x, None)
    for theirs, name in (("kl", "sampler/kl_k1"), ("k3_kl", "sampler_kl"), ("chi2_token", "sampler/chi2")):
        assert tokens[name].value == pytest.approx(want[theirs], rel=1e-6, abs=1e-6)
