"""The family beyond the mission: values and gradients against an oracle of loops, and the identities that hold."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpokit.losses import LOSSES, SURROGATES, LossBatch, make_loss, policy_loss
from helpers import oracle_family as oracle
from helpers.family_data import FAMILY, Step, build, flat, gather, make_step, run, seeds

T64 = torch.float64
BEYOND = [name for name in FAMILY if name in oracle.ELL or name == "real"]


def test_the_oracle_knows_every_loss_beyond_the_mission():
    mission = {"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"}
    assert set(LOSSES) == mission | set(BEYOND)


def leaves(step: Step):
    """The oracle's view of a step, and its leaves [N] in the flat order."""
    sequences, logps, entropies = [], [], []
    for i in range(len(step.mask)):
        at = torch.nonzero(step.mask[i]).flatten().tolist()
        logp = [step.logps[i, t].clone().requires_grad_() for t in at]
        entropy = [step.entropies[i, t].clone().requires_grad_() for t in at]
        logps += logp
        entropies += entropy
        pick = lambda x: [float(x[i, t]) for t in at]  # noqa: B023, E731
        advantages = (
            step.advantages if step.advantages.ndim == 2 else step.advantages[:, None].expand(step.mask.shape)
        )
        old = step.logps if step.old is None else step.old
        sequences.append(
            oracle.Sequence(
                i,
                int(step.groups[i]),
                at,
                logp,
                pick(old),
                pick(step.sampler),
                pick(step.ref),
                entropy,
                pick(advantages),
            )
        )
    return sequences, logps, entropies


def compare(loss, step, **options):
    sequences, logps, entropies = leaves(step)
    want = oracle.total(loss.name, sequences, **options)
    if isinstance(want, torch.Tensor) and want.requires_grad:
        want.backward()
    zero = torch.zeros((), dtype=T64)
    gradient = (
        torch.stack([zero if p.grad is None else p.grad for p in logps])
        if logps
        else torch.zeros(0, dtype=T64)
    )
    batch = flat(loss, step)
    got = run(loss, batch, [slice(None)])
    want_value = oracle.num(want)
    assert float(got.loss) == pytest.approx(want_value, rel=1e-10, abs=1e-12)
    scale = max(1.0, float(gradient.abs().max()) if len(gradient) else 1.0)
    torch.testing.assert_close(got.gradient, gradient, rtol=1e-10, atol=1e-13 * scale)
    if entropies:
        bonus = torch.stack([zero if p.grad is None else p.grad for p in entropies])
        torch.testing.assert_close(got.entropy_gradient, bonus, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", BEYOND)
@given(seed=seeds, spread=st.sampled_from([0.02, 0.3, 1.5, 40.0]), beta=st.sampled_from([0.0, 0.1]))
def test_against_the_oracle(name, seed, spread, beta):
    step = make_step(seed, spread=spread, per_token=name == "gspo_token")
    compare(build(name, beta=beta), step, beta=beta)


@pytest.mark.parametrize("name", ["gspo", "gmpo", "spo", "kl_cov", "m2po"])
@given(seed=seeds)
def test_terms_and_masks_against_the_oracle(name, seed):
    step = make_step(seed, spread=0.5)
    loss = build(name, beta=0.1, entropy_coef=0.03, top_entropy_quantile=0.4)
    compare(loss, step, beta=0.1, entropy_coef=0.03, quantile=0.4)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence_product", "sequence_geometric"])
@given(seed=seeds)
def test_corrections_against_the_oracle(mode, level, seed):
    step = make_step(seed, spread=0.7)
    loss = build("gspo", correction_mode=mode, correction_level=level, opsm_threshold=0.1)
    compare(loss, step, correct=(mode, level), opsm=0.1)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence_product", "sequence_geometric"])
@given(seed=seeds)
def test_corrections_of_a_token_ratio_against_the_oracle(mode, level, seed):
    loss = build("spo", correction_mode=mode, correction_level=level)
    compare(loss, make_step(seed, spread=0.7), correct=(mode, level))


FURTHER = {
    "a lower clamp": {"mode": "truncate", "level": "token", "low": 0.7, "cap": 1.5},
    "a lower clamp of sequences": {"mode": "truncate", "level": "sequence_product", "low": 0.4, "cap": 1.5},
    "keep by the mean": {"mode": "truncate", "level": "token", "keep": ("sequence_geometric", 0.9, 1.2)},
    "keep by the product": {"mode": "mask", "level": "token", "keep": ("sequence_product", 0.0, 1.5)},
    "keep, normalised": {
        "mode": "truncate",
        "level": "token",
        "normalize": True,
        "keep": ("sequence_geometric", 0.9, 2.0),
    },
    "normalised tokens": {"mode": "truncate", "level": "token", "normalize": True},
    "normalised sequences": {"mode": "truncate", "level": "sequence_product", "normalize": True},
    "normalised, masked": {"mode": "mask", "level": "sequence_geometric", "normalize": True},
    **{
        f"reject {estimator} {level}": {
            "mode": "reject",
            "level": level,
            "estimator": estimator,
            "high": high,
        }
        for estimator, high in (("k1", 1.5), ("k2", 0.2), ("k3", 0.2))
        for level in ("token", "sequence_product", "sequence_geometric", "sequence_max")
        if (estimator, level) != ("k1", "sequence_max")
    },
    "reject k1 between two ratios": {"mode": "reject", "level": "token", "low": 0.9, "high": 2.0},
}


def options_of(how):
    """The oracle's arguments as options of `make_loss`."""
    found = {f"correction_{name}": value for name, value in how.items() if name != "keep"}
    if "keep" in how:
        keep, low, high = how["keep"]
        found |= {"correction_keep": keep, "correction_keep_low": low, "correction_keep_high": high}
    return found


@pytest.mark.parametrize("name", ["gspo", "m2po"])
@pytest.mark.parametrize("how", FURTHER.values(), ids=FURTHER)
@settings(max_examples=6)
@given(seed=seeds)
def test_further_corrections_against_the_oracle(name, how, seed):
    """gspo has one ratio for a sequence, through which a token's weight reaches all of its tokens."""
    compare(build(name, **options_of(how)), make_step(seed, spread=0.7), correct=how)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("gradient", ["own", "k2", "ratio"])
@given(seed=seeds)
def test_kl_estimators_and_gradients_against_the_oracle(estimator, gradient, seed):
    kl = {"kl_estimator": estimator, "kl_gradient": gradient}
    compare(build("importance_sampling", beta=0.3, **kl), make_step(seed), beta=0.3, **kl)


def one_sequence(logps, **fields):
    """A batch of one sequence of N tokens, advantages and weights 1."""
    n = len(logps)
    ones = torch.ones(n, dtype=T64)
    places = {"positions": torch.arange(n), "lengths": torch.full((n,), n)}
    return LossBatch(
        logps=logps,
        advantages=ones,
        weights=ones,
        sequence_ids=torch.zeros(n, dtype=torch.long),
        **places,
        **fields,
    )


def group_of_two_each(rewards):
    """A batch of groups of two completions of one token each, on-policy; `rewards` has a pair of advantages per group."""
    advantages = torch.tensor(rewards, dtype=T64).flatten()
    n = len(advantages)
    return LossBatch(
        logps=torch.full((n,), -1.0, dtype=T64),
        advantages=advantages,
        weights=torch.full((n,), 1 / n, dtype=T64),
        sequence_ids=torch.arange(n),
        group_ids=torch.arange(n) // 2,
        positions=torch.zeros(n, dtype=torch.long),
        lengths=torch.ones(n, dtype=torch.long),
    )


def test_m2po_keeps_tokens_on_their_way_back():
    """arXiv 2510.01161v2, Algorithm 1: only A·log ρ > 0 is constrained. Here that is one token, within the bound."""
    d = torch.tensor([-1.0, 0.1, 1.0], dtype=T64)
    logps = torch.full((3,), -1.0, dtype=T64)
    batch = dataclasses.replace(
        one_sequence(logps, old_logps=logps - d), advantages=torch.tensor([1.0, 1.0, -1.0], dtype=T64)
    )
    stats = gather(build("m2po"), batch, [slice(None)])
    assert stats.by_token["kept"].tolist() == [1, 1, 1]


def test_m2po_drops_the_farthest_of_the_trust_region():
    """m2 = 0.81, 0.01 and 0.04 among the constrained: without the first the mean is 0.025. The fourth is not constrained."""
    d = torch.tensor([0.9, 0.1, -0.2, -3.0], dtype=T64)
    logps = torch.full((4,), -4.0, dtype=T64)
    batch = dataclasses.replace(
        one_sequence(logps, old_logps=logps - d), advantages=torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=T64)
    )
    stats = gather(build("m2po"), batch, [slice(None)])
    assert stats.by_token["kept"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("scatter", "dropped"), [(0.2, 0.0), (0.3, 0.097), (0.5, 0.237)]
)  # E[x²; x < c] = 0.04·P(x < c), solved for c
def test_m2po_drops_a_tenth_at_a_scatter_of_three_tenths(scatter, dropped):
    g = torch.Generator().manual_seed(1)
    d = scatter * torch.randn(200_000, generator=g, dtype=T64)
    logps = torch.full_like(d, -4.0)
    batch = dataclasses.replace(
        one_sequence(logps, old_logps=logps - d), advantages=torch.randn(d.shape, generator=g, dtype=T64)
    )
    kept = gather(build("m2po"), batch, [slice(None)]).by_token["kept"]
    assert 1 - float(kept.mean()) == pytest.approx(dropped, abs=2e-3)


@pytest.mark.parametrize(
    ("groups", "value"),
    [
        ([[1, -1], [1, -1]], 2 * math.log(2)),
        ([[1, -1], [0, 0]], math.log(2)),  # the second group is all right, or all wrong
        ([[0, 0], [0, 0]], 0.0),
    ],
)
def test_real_divides_by_all_groups(groups, value):
    loss, batch = build("real"), group_of_two_each(groups)
    stats = gather(loss, batch, [slice(None)])
    assert float(policy_loss(loss, batch, stats).loss) == pytest.approx(value)


@pytest.mark.parametrize("gradient", ["own", "k2"])
@pytest.mark.parametrize("distance", [19.0, 21.0, -25.0, 100.0])
def test_k2_pulls_at_any_distance(distance, gradient):
    """∂(½x²)/∂logp = x, also beyond ±20: k2 has no exp."""
    logps = torch.tensor([-1.0], dtype=T64, requires_grad=True)
    batch = dataclasses.replace(
        one_sequence(logps, ref_logps=torch.tensor([-1.0 - distance], dtype=T64)),
        advantages=torch.zeros(1, dtype=T64),
    )
    policy_loss(build("grpo", beta=1.0, kl_estimator="k2", kl_gradient=gradient), batch).loss.backward()
    assert float(logps.grad) == pytest.approx(distance)


def test_k1_keeps_its_value_and_gradient_at_any_distance():
    logps = torch.tensor([-1.0], dtype=T64, requires_grad=True)
    batch = dataclasses.replace(
        one_sequence(logps, ref_logps=torch.tensor([-31.0], dtype=T64)), advantages=torch.zeros(1, dtype=T64)
    )
    loss = policy_loss(build("grpo", beta=1.0, kl_estimator="k1"), batch).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(30.0)
    assert float(logps.grad) == pytest.approx(1.0)


def test_fipo_drops_terms_over_delta():
    """ρ = 1, 2: F_0 = γ·log 2, so f = 1.2; with δ = 1.5 that term is dropped, and f = 1. Both: the clip's −1 and −1.2."""
    logps = torch.tensor([-1.0, -1.0], dtype=T64)
    batch = one_sequence(logps, old_logps=logps - torch.tensor([0.0, math.log(2)], dtype=T64))
    assert float(policy_loss(build("fipo"), batch).loss) == pytest.approx(-1.2 - 1.2 * 1.2)
    assert float(policy_loss(build("fipo", delta=1.5), batch).loss) == pytest.approx(-1 - 1.2)


def test_diagnostics_of_the_sampler_by_hand():
    """c = 2 and 1/2: χ² = (4 + 1/4)/2 − 1, ESS = 2.5²/(2·4.25), k3 = mean(c − log c − 1), one of two over the cap 1.5."""
    logps = torch.tensor([-1.0, -1.0], dtype=T64)
    batch = one_sequence(logps, sampler_logps=logps - torch.tensor([2.0, 0.5], dtype=T64).log())
    found = policy_loss(build("grpo", correction_mode="truncate", correction_cap=1.5), batch).metrics
    want = {
        "sampler/chi2": 1.125,
        "sampler/ess": 6.25 / 8.5,
        "sampler_kl": 0.25,
        "sampler/kl_k1": 0,
        "sampler/truncated": 0.5,
    }
    assert {name: found[name].value for name in want} == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_narrow_integer_ids_change_nothing(name):
    loss = build(name)
    batch = flat(loss, make_step(2))
    narrow = {f: getattr(batch, f).int() for f in ("sequence_ids", "group_ids", "positions", "lengths")}
    got, want = (run(loss, b, [slice(None)]) for b in (dataclasses.replace(batch, **narrow), batch))
    assert torch.equal(got.gradient, want.gradient)


@pytest.mark.parametrize("far", [30.0, -30.0])
def test_vespo_clamps_w_after_the_correction_is_in_it(far):
    """Σ log ρ = far and Σ log c = −far: W = 1, φ = 1, so the loss is −A·logp."""
    logps = torch.full((3,), -1.0, dtype=T64)
    batch = one_sequence(logps, old_logps=logps - far / 3, sampler_logps=logps)
    loss = build("vespo", correction_mode="truncate", correction_cap=1e9)
    assert float(policy_loss(loss, batch).loss) == pytest.approx(3.0)


@given(seed=seeds)
def test_vespo_takes_the_correction_inside(seed):
    """W gets Σ log c beside Σ log ρ, and ℓ is not multiplied by c."""
    step = make_step(seed, spread=0.2)
    corrected = build("vespo", correction_mode="truncate", correction_cap=1e6)
    moved = dataclasses.replace(step, old=step.sampler)  # Σ(logp − old) + Σ(old − μ) = Σ(logp − μ)
    got = run(corrected, flat(corrected, step), [slice(None)])
    want = run(build("vespo"), flat(build("vespo"), moved), [slice(None)])
    torch.testing.assert_close(got.gradient, want.gradient, rtol=1e-9, atol=1e-13)


@given(seed=seeds)
def test_clip_cov_and_kl_cov_with_more_than_one_token_selected(seed):
    step = make_step(seed, rows=8, width=9, spread=0.3)
    spread_a = dataclasses.replace(step, advantages=step.advantages * 3)
    for name, options in (
        ("clip_cov", {"cov_low": 0.1, "cov_ratio": 0.1}),
        ("kl_cov", {"kl_cov_ratio": 0.1}),
    ):
        loss = build(name, **options)
        batch = flat(loss, spread_a)
        stats = gather(loss, batch, [slice(None)])
        if name == "kl_cov" and len(batch):
            assert int(stats.by_token["selected"].sum()) == max(1, int(0.1 * len(batch)))
    sequences, logps, _ = leaves(spread_a)
    loss = build("clip_cov", cov_low=0.1, cov_ratio=0.1)
    live = [s for s in sequences if s.logp]
    want = sum(
        (oracle.clip_cov(live, s, t, low=0.1, ratio=0.1) / sum(len(u.logp) for u in live))
        for s, t in oracle.all_tokens(live)
    )
    if isinstance(want, torch.Tensor):
        want.backward()
        gradient = torch.stack([torch.zeros((), dtype=T64) if p.grad is None else p.grad for p in logps])
        got = run(loss, flat(loss, spread_a), [slice(None)])
        torch.testing.assert_close(got.gradient, gradient, rtol=1e-10, atol=1e-14)


# ∂ℓ/∂logp = −A·w on-policy, where the objective is a policy gradient at ρ = 1. Not: vespo with A < 0 (φ(1) = 1 both ways, so
# it is), real (a classification loss), kl_cov (its penalty has no gradient at 0, so it is too).
@pytest.mark.parametrize("name", [n for n in FAMILY if n != "real"])
@given(seed=seeds)
def test_on_policy_gradient_is_the_policy_gradient(name, seed):
    step = dataclasses.replace(make_step(seed), old=None)
    step = dataclasses.replace(step, sampler=step.logps)
    loss = build(name, **({"cov_low": 1e6, "cov_high": 1e7} if name == "clip_cov" else {}))
    batch = flat(loss, step)
    got = run(loss, batch, [slice(None)])
    torch.testing.assert_close(got.gradient, -batch.weights * batch.advantages, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["spo", "importance_sampling", "reinforce"])
@given(seed=seeds)
def test_odd_in_the_advantage_but_for_spos_penalty(name, seed):
    """ℓ(−A) = −ℓ(A), where nothing depends on A's sign; spo adds twice its penalty, which is even."""
    step = make_step(seed)
    loss = build(name)
    flipped = dataclasses.replace(step, advantages=-step.advantages)
    a, b = (run(loss, flat(loss, s), [slice(None)]) for s in (step, flipped))
    batch = flat(loss, step)
    even = torch.zeros((), dtype=T64)
    if name == "spo":
        rho = (batch.logps - batch.old_logps).clamp(-20, 20).exp()
        even = (batch.weights * batch.advantages.abs() * (rho - 1) ** 2 / 0.4).sum()
    torch.testing.assert_close(a.loss + b.loss, 2 * even, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, T64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_extreme_log_ratios_are_finite(name, dtype, sign, gap):
    step = make_step(3, dtype=dtype)
    far = step.logps - gap * (torch.arange(step.mask.shape[1]) % 3 - 1)
    step = dataclasses.replace(
        step, old=far, sampler=far.clamp(max=-1e-3), ref=far, advantages=sign * (step.advantages.abs() + 0.1)
    )
    loss = build(name, beta=0.04, correction_mode="truncate")
    got = run(loss, flat(loss, step), [slice(None)])
    assert math.isfinite(float(got.loss))
    assert torch.isfinite(got.gradient).all()
    assert all(math.isfinite(v) for v in got.metrics.values())


@pytest.mark.parametrize("name", sorted(SURROGATES))
@given(seed=seeds)
def test_zero_at_zero_advantage_is_true_where_it_is_said(name, seed):
    """Dead rows rest on it: value and gradient are exactly 0 at A = 0, or the surrogate says that they aren't."""
    loss = build(next(n for n, row in LOSSES.items() if row.surrogate == name))
    step = make_step(seed, spread=0.7)
    # one group dead, the rest alive, so that statistics over the update are not trivial
    step = dataclasses.replace(step, advantages=torch.where(step.groups == 0, 0.0, step.advantages))
    batch = flat(loss, step)
    got = run(loss, batch, [slice(None)])
    dead = batch.group_ids == 0
    if loss.surrogate.zero_at_zero_advantage:
        assert (got.gradient[dead] == 0).all()
        alone = policy_loss(
            loss,
            batch.select(dead),
            stats=gather(loss, batch, [slice(None)]) if loss.coupling != "token" else None,
        )
        assert float(alone.loss) == 0


def test_a_surrogate_that_is_not_zero_there_says_so():
    """kl_cov penalises |log ρ| at A = 0 as well."""
    assert not SURROGATES["kl_cov"].zero_at_zero_advantage
    assert not make_loss("kl_cov").drops_dead_rows


def test_per_token_advantages_are_refused_where_a_sequence_has_one_value():
    step = make_step(1, per_token=True)
    for name in ("gspo", "luspo", "gmpo", "real", "vespo"):
        loss = build(name)
        with pytest.raises(ValueError, match="gspo_token"):
            run(loss, flat(loss, step), [slice(None)])
    run(build("gspo_token"), flat(build("gspo_token"), step), [slice(None)])


def test_product_ratio_with_a_clip_has_the_gradient_of_the_product():
    """clip on ∏ρ: autograd through the sum, against T times each token's own."""
    logps = torch.tensor([-1.0, -0.5, -2.0], dtype=T64, requires_grad=True)
    old = torch.tensor([-1.1, -0.45, -1.9], dtype=T64)
    loss = make_loss("grpo", ratio_level="sequence_product", surrogate="importance_sampling")
    ones = torch.ones(3, dtype=T64)
    batch = LossBatch(
        logps=logps,
        old_logps=old,
        advantages=2 * ones,
        weights=ones / 3,
        sequence_ids=torch.zeros(3, dtype=torch.long),
        lengths=torch.full((3,), 3),
    )
    policy_loss(loss, batch).loss.backward()
    leaf = logps.detach().clone().requires_grad_()
    (-2 * torch.exp((leaf - old).sum())).backward()
    torch.testing.assert_close(logps.grad, leaf.grad)
