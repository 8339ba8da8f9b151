"""One gradient for the whole family: every loss × reduction × correction × KL, under every cut; and no more than is said."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpokit.losses import LOSSES, RATIO_LEVELS, REDUCTIONS, SURROGATES, UpdateStats, make_loss, policy_loss
from helpers.family_data import FAMILY, assert_same, build, flat, gather, make_step, run, seeds, weights_of

WHOLE = [slice(None)]


def compositions(name):
    """Every meaningful reduction of a loss; make_loss refuses the rest."""
    part = SURROGATES[LOSSES[name].surrogate]
    return [r for r in REDUCTIONS if part.reductions is None or r in part.reductions]


ALL = [(name, reduction) for name in FAMILY for reduction in compositions(name)]
CORRECTIONS = [
    {},
    {"correction_mode": "truncate"},
    {"correction_mode": "mask", "correction_level": "sequence_geometric"},
    {"correction_mode": "mask", "correction_level": "token", "opsm_threshold": 0.1},
    {
        "correction_mode": "truncate",
        "correction_low": 0.5,
        "correction_keep": "sequence_geometric",
        "correction_keep_high": 1.2,
    },
    {"correction_mode": "truncate", "correction_level": "sequence_product", "correction_normalize": True},
    {
        "correction_mode": "reject",
        "correction_estimator": "k3",
        "correction_level": "sequence_max",
        "correction_high": 0.3,
    },
    {"correction": "trl"},
]
TERMS = [
    {},
    {"beta": 0.04},
    {"beta": 0.1, "kl_gradient": "ratio", "entropy_coef": 0.01, "top_entropy_quantile": 0.5},
]


def random_cut(count, parts, seed):
    """Indices dealt at random to parts, some of them empty."""
    part_of = torch.randint(0, parts, (count,), generator=torch.Generator().manual_seed(seed))
    return [torch.nonzero(part_of == p).flatten() for p in range(parts)]


@pytest.mark.parametrize(("name", "reduction"), ALL)
@settings(max_examples=15)
@given(
    seed=seeds,
    correction=st.sampled_from(CORRECTIONS),
    terms=st.sampled_from(TERMS),
    parts=st.sampled_from([2, 3, 8]),
    on_policy=st.booleans(),
)
def test_any_cut_permutation_padding_and_packing(name, reduction, seed, correction, terms, parts, on_policy):
    """With the update's statistics, any tokens are a slice: in any order, from padded rows or from one packed row."""
    assume(name != "vespo" or not {"correction_keep", "correction_normalize"} & correction.keys())
    loss = build(name, reduction, **correction, **terms)
    step = make_step(seed)
    step = dataclasses.replace(step, old=None) if on_policy else step
    batch = flat(loss, step)
    whole = run(loss, batch, WHOLE)
    assert_same(run(loss, batch, random_cut(len(batch), parts, seed)), whole)

    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    shuffled = run(loss, batch.select(order), WHOLE)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    assert_same(
        dataclasses.replace(
            shuffled, gradient=shuffled.gradient[back], entropy_gradient=shuffled.entropy_gradient[back]
        ),
        whole,
    )

    nan = float("nan")
    wide = {
        f: torch.nn.functional.pad(getattr(step, f), (0, 3, 0, 2), value=nan)
        for f in ("logps", "ref", "sampler", "entropies")
    }
    padded = dataclasses.replace(
        step,
        mask=torch.nn.functional.pad(step.mask, (0, 3, 0, 2)),
        old=None if step.old is None else torch.nn.functional.pad(step.old, (0, 3, 0, 2), value=nan),
        advantages=torch.nn.functional.pad(step.advantages, (0, 2), value=nan),
        groups=torch.nn.functional.pad(step.groups, (0, 2), value=99),
        ranks=torch.nn.functional.pad(step.ranks, (0, 2)),
        **wide,
    )
    assert_same(run(loss, flat(loss, padded), WHOLE), whole)


@pytest.mark.parametrize(("name", "reduction"), ALL)
@settings(max_examples=10)
@given(
    seed=seeds,
    correction=st.sampled_from(CORRECTIONS),
    terms=st.sampled_from(TERMS),
    num_ranks=st.sampled_from([2, 4]),
)
def test_ranks_add_up_to_the_whole_update(name, reduction, seed, correction, terms, num_ranks):
    """Weights from joined counts, statistics gathered over ranks, shares summed: the same as on one rank."""
    assume(name != "vespo" or not {"correction_keep", "correction_normalize"} & correction.keys())
    loss = build(name, reduction, **correction, **terms)
    step = make_step(seed, num_ranks=num_ranks)
    batch = flat(loss, step)
    rank_of_token = step.ranks[batch.sequence_ids]
    parts = [torch.nonzero(rank_of_token == r).flatten() for r in range(num_ranks)]
    together = UpdateStats.join([UpdateStats.of(loss, batch.select(p)) for p in parts])
    stats = None if loss.coupling == "token" else together.finish(loss)
    ranked = run(loss, batch, parts, stats=stats)
    if "ranks" in loss.invariances:
        one = flat(loss, dataclasses.replace(step, ranks=torch.zeros_like(step.ranks), num_ranks=1))
    else:
        one = batch  # fixed rank contents, in one piece
    assert_same(ranked, run(loss, one, WHOLE))


def outcome(loss, batch, parts, whole):
    """True: the same without statistics. False: refused or different."""
    try:
        assert_same(run(loss, batch, parts, stats=None), whole)
    except (ValueError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("name", FAMILY)
def test_the_table_neither_overstates_nor_understates(name):
    """Each invariance that a loss claims holds on every update tried; each that it doesn't claim fails on one at least."""
    loss = build(name)
    holds = {"tokens": [], "sequences": [], "stats": [], "ranks": []}
    for seed in range(1, 9):
        step = make_step(seed, num_ranks=2)
        batch = flat(loss, step)
        whole = run(loss, batch, WHOLE)
        tokens = random_cut(len(batch), 3, seed)
        of_sequence = random_cut(len(step.mask), 3, seed)
        sequences = [torch.nonzero(torch.isin(batch.sequence_ids, s)).flatten() for s in of_sequence]
        holds["tokens"].append(outcome(loss, batch, tokens, whole))
        holds["sequences"].append(outcome(loss, batch, sequences, whole))
        assert_same(run(loss, batch, tokens), whole)
        holds["stats"].append(True)
        one = flat(loss, dataclasses.replace(step, ranks=torch.zeros_like(step.ranks), num_ranks=1))
        holds["ranks"].append(torch.allclose(one.weights, batch.weights, rtol=1e-12))
    assert {claim for claim, results in holds.items() if all(results)} == loss.invariances


@pytest.mark.filterwarnings("ignore:epsilon")  # a token's epsilon on a sequence's ratio: composed, and said
@pytest.mark.parametrize("name", FAMILY)
def test_every_level_is_composed_or_refused(name):
    for level in RATIO_LEVELS:
        meaningful = level in SURROGATES[LOSSES[name].surrogate].ratio_levels
        fixed = LOSSES[name].fixed_level and level != LOSSES[name].ratio_level
        if meaningful and not fixed:
            loss = build(name, ratio_level=level)
            step = make_step(4)
            batch = flat(loss, step)
            assert_same(run(loss, batch, random_cut(len(batch), 3, 1)), run(loss, batch, WHOLE))
        else:
            with pytest.raises(ValueError, match=f"ratio_level {level}"):
                build(name, ratio_level=level)


@pytest.mark.parametrize("name", [n for n in FAMILY if build(n).coupling != "token"])
def test_an_incomplete_slice_without_statistics_is_refused(name):
    loss = build(name)
    batch = flat(loss, make_step(1))
    with pytest.raises(ValueError, match=r"stats|whole"):
        policy_loss(loss, batch.select(torch.arange(len(batch) - 1)))


def test_slices_that_know_only_their_own_part_of_a_sequence():
    """from_padded takes the mask's row sums for lengths: of a slice that is its part, and statistics know the rest."""
    for name in ("gspo", "gmpo", "vespo", "real", "fipo"):
        loss = build(name)
        step = make_step(4)
        whole = run(loss, flat(loss, step), WHOLE)
        weights = weights_of(loss, step)
        halves = [step.mask & (torch.arange(6) < 3), step.mask & (torch.arange(6) >= 3)]
        logps = step.logps.clone().requires_grad_()
        batches = [
            flat(loss, dataclasses.replace(step, mask=half, logps=logps), weights=weights) for half in halves
        ]
        stats = (UpdateStats.of(loss, batches[0]) + UpdateStats.of(loss, batches[1])).finish(loss)
        total = sum(policy_loss(loss, batch, stats).loss for batch in batches)
        total.backward()
        torch.testing.assert_close(total.detach(), whole.loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(logps.grad[step.mask], whole.gradient, rtol=1e-12, atol=1e-14)


def test_without_lengths_nobody_can_tell_whether_a_sequence_is_whole():
    loss = build("gspo")
    batch = dataclasses.replace(flat(loss, make_step(1)), lengths=None)
    with pytest.raises(ValueError, match=r"LossBatch\.lengths"):
        policy_loss(loss, batch)
    stats = gather(loss, batch, WHOLE)
    assert policy_loss(loss, batch, stats).loss.requires_grad is False


def test_statistics_of_other_tokens_are_refused():
    loss = build("clip_cov")
    batch = flat(loss, make_step(1))
    stats = gather(loss, batch.select(torch.arange(5)), WHOLE)
    with pytest.raises(ValueError, match="other tokens"):
        policy_loss(loss, batch, stats=stats)


def test_a_slice_added_twice_is_refused():
    loss = build("m2po")
    one = UpdateStats.of(loss, flat(loss, make_step(1)))
    with pytest.raises(ValueError, match="twice"):
        (one + one).finish(loss)


@pytest.mark.parametrize("name", FAMILY)
def test_an_empty_update_is_zero_and_has_a_gradient(name):
    """No token anywhere: a connected zero, also through the statistics."""
    loss = build(name)
    step = make_step(1)
    batch = flat(loss, dataclasses.replace(step, mask=torch.zeros_like(step.mask)))
    result = run(loss, batch, WHOLE)
    assert float(result.loss) == 0


def test_selection_by_chance_is_keyed_by_seed_and_step():
    loss = build("clip_cov", cov_low=-1e9, cov_high=1e9, cov_ratio=0.3, epsilon=0.99, epsilon_high=1e6)
    batch = flat(loss, make_step(2, rows=8, width=12))
    picks = [
        gather(loss, batch, WHOLE, seed, step).by_token["selected"]
        for seed, step in [(0, 0), (0, 0), (1, 0), (0, 1)]
    ]
    assert torch.equal(picks[0], picks[1])
    assert not torch.equal(picks[0], picks[2])
    assert not torch.equal(picks[0], picks[3])
    assert all(p.sum() == int(0.3 * len(batch)) for p in picks)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gmpo", {"ratio_level": "token"}, "gmpo"),
        ("luspo", {"ratio_level": "token"}, "luspo is defined by its sequence ratio"),
        ("vespo", {"ratio_level": "token"}, "vespo"),
        ("reinforce", {"ratio_level": "sequence"}, "reinforce"),
        ("real", {"reduction": "token_mean"}, "real fixes its own"),
        ("grpo", {"kl_estimator": "k2"}, "beta above 0"),
        ("grpo", {"beta": 0.1, "kl_estimator": "k4"}, "k1, k2, k3"),
        ("grpo", {"beta": 0.1, "kl_gradient": "none"}, "own, k2, ratio"),
        ("grpo", {"top_entropy_quantile": 0.0}, "0.2 is usual"),
        ("grpo", {"correction_cap": 3.0}, "correction_mode"),
        ("grpo", {"correction_mode": "tis"}, "truncate, mask"),
        ("grpo", {"correction_mode": "mask", "correction_cap": 2.0}, "not used by correction_mode mask"),
        ("grpo", {"correction_mode": "mask", "correction_low": 5.0, "correction_high": 0.5}, "low < high"),
        ("grpo", {"correction_mode": "truncate", "correction_level": "word"}, "sequence_geometric"),
        ("grpo", {"rejected_tokens": "drop"}, "correction_mode mask"),
        ("dppo_tv", {"correction_mode": "mask", "rejected_tokens": "drop"}, "leave rejected_tokens at keep"),
        (
            "grpo",
            {"correction_mode": "mask", "rejected_tokens": "drop", "opsm_threshold": 0.1},
            "opsm_threshold",
        ),
        ("grpo", {"opsm_threshold": float("nan")}, "finite number"),
        ("grpo", {"beta": "0.1"}, "finite number"),
        ("grpo", {"beta": True}, "finite number"),
        ("dppo_tv", {"dppo_cap": 0.5}, "20 is the paper's"),
        ("m2po", {"m2_threshold": 0.0}, "0.04"),
        ("real", {"real_tau": -1.0}, "0.5"),
    ],
)
def test_wrong_inputs_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        build(name, **options)


def test_a_correction_needs_the_samplers_log_probs():
    loss = make_loss("grpo", correction_mode="truncate")
    batch = dataclasses.replace(flat(loss, make_step(1)), sampler_logps=None)
    with pytest.raises(ValueError, match="sampler"):
        policy_loss(loss, batch)
    with pytest.raises(ValueError, match="sampler"):
        policy_loss(make_loss("dppo_tv"), batch)


def test_sampler_log_probs_change_nothing_by_themselves():
    for name in FAMILY:
        if name.startswith("dppo"):
            continue
        loss = build(name)
        batch = flat(loss, make_step(1))
        without, found = (
            run(loss, dataclasses.replace(batch, sampler_logps=None), WHOLE),
            run(loss, batch, WHOLE),
        )
        diagnosed = {metric for metric in found.metrics if metric.startswith("sampler")}
        assert "sampler/ess" in diagnosed  # they are measured in any case
        assert_same(
            without,
            dataclasses.replace(
                found, metrics={m: v for m, v in found.metrics.items() if m not in diagnosed}
            ),
        )
