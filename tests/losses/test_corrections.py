"""Corrections: the presets against slow loops, golden numbers, what each mode refuses, and the diagnostics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from test_family_values import compare

from grpokit.losses import make_loss
from grpokit.losses.checks import make_correction
from grpokit.losses.correction import PRESETS, of_sequences
from helpers.family_data import make_step, seeds

T64 = torch.float64
# What each peer does, as the oracle's loops have it.
PEERS = {
    "trl": {"mode": "mask", "level": "sequence_product", "low": 0.0, "high": 3.0},
    "swift": {"mode": "truncate", "level": "token", "cap": 2.0},
    "verl-tis": {"mode": "truncate", "level": "token", "cap": 2.0},
    "icepop": {"mode": "mask", "level": "token", "low": 0.5, "high": 5.0},
}


def correction(**options):
    return make_correction(
        {name if name == "correction" else f"correction_{name}": v for name, v in options.items()}
    )


def test_every_preset_is_checked():
    assert set(PEERS) == set(PRESETS)


@pytest.mark.parametrize("name", PEERS)
@settings(max_examples=10)
@given(seed=seeds)
def test_a_preset_is_its_peers_formula(name, seed):
    compare(make_loss("spo", correction=name), make_step(seed, spread=0.7), correct=PEERS[name])


def test_other_options_change_a_preset():
    changed = correction(correction="trl", high=2.0)
    assert str(changed) == (
        "correction_mode mask, correction_level sequence_product, correction_low 0, correction_high 2"
    )
    truncated = correction(correction="trl", mode="truncate", cap=4.0)
    assert (truncated.mode, truncated.level, truncated.cap) == ("truncate", "sequence_product", 4.0)


WEIGHTS = [0.25, 0.5, 1.0, 3.0, 8.0]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"mode": "truncate"}, [0.25, 0.5, 1, 2, 2]),
        ({"mode": "truncate", "low": 0.5, "cap": 4.0}, [0.5, 0.5, 1, 3, 4]),
        ({"mode": "mask"}, [0, 0.5, 1, 3, 0]),
        ({"mode": "reject", "high": 2.0}, [0, 1, 1, 0, 0]),
        (
            {"mode": "reject", "low": 0.3, "high": 2.0},
            [0, 1, 1, 1, 0],
        ),  # k1 = −log c: c between 1/2 and 1/0.3
        ({"mode": "reject", "estimator": "k2", "high": 0.7}, [0, 1, 1, 1, 0]),  # ½·log² 0.25 = 0.96, 3: 0.60
        (
            {"mode": "reject", "estimator": "k3", "high": 0.2},
            [0, 1, 1, 0, 0],
        ),  # c − 1 − log c: 0.64, 0.19, 0, 0.90
    ],
)
def test_golden_weights_of_tokens(options, want):
    made = correction(**options)
    x = torch.tensor(WEIGHTS, dtype=T64).log()
    assert made.weight(made.of_sequence(x)).tolist() == pytest.approx(want)


@pytest.mark.parametrize(
    ("level", "estimator", "value"),
    [
        ("sequence_product", "k1", -math.log(3.0)),  # the product of the weights is 3
        ("sequence_geometric", "k1", -math.log(3.0) / 5),
        ("sequence_max", "k3", 7 - math.log(8)),
        ("sequence_geometric", "k2", sum(math.log(c) ** 2 / 2 for c in WEIGHTS) / 5),
    ],
)
def test_golden_values_of_sequences(level, estimator, value):
    made = correction(mode="reject", level=level, estimator=estimator, high=100.0)
    assert float(made.of_sequence(torch.tensor(WEIGHTS, dtype=T64).log())) == pytest.approx(value)


def test_keep_asks_the_whole_sequence():
    """The product of the weights is 3, their geometric mean 1.246."""
    x = torch.tensor(WEIGHTS, dtype=T64).log()
    for level, high, kept in (
        ("sequence_product", 2.9, False),
        ("sequence_product", 3.1, True),
        ("sequence_geometric", 1.24, False),
        ("sequence_geometric", 1.25, True),
    ):
        assert bool(correction(mode="truncate", keep=level, keep_high=high).keeps(x)) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "tis"}, "correction 'tis': is not one of trl, swift, verl-tis, icepop"),
        ({"mode": "truncate", "high": 3.0}, "correction_high 3.0: not used by correction_mode truncate"),
        ({"mode": "truncate", "low": 3.0}, "must be 0 ≤ low < cap"),
        ({"mode": "mask", "estimator": "k3"}, "correction_estimator k3: not used by correction_mode mask"),
        ({"mode": "mask", "level": "sequence_max"}, "correction_level 'sequence_max'"),
        ({"mode": "reject"}, "correction_mode reject: needs a bound on k1; set correction_high"),
        ({"mode": "reject", "high": 0.5}, "the bounds of k1 are ratios"),
        ({"mode": "reject", "high": 2.0, "level": "sequence_max"}, "is for k2 and k3"),
        ({"mode": "reject", "high": 0.1, "low": 0.0, "estimator": "k3"}, "k3 is never below 0"),
        (
            {"mode": "reject", "high": 0.0, "estimator": "k3"},
            "correction_high 0.0: must be finite and above 0",
        ),
        ({"mode": "reject", "high": 2.0, "normalize": True}, "correction_normalize True: not used"),
        ({"mode": "reject", "high": 2.0, "estimator": "k4"}, "is not one of k1, k2, k3"),
        ({"mode": "truncate", "keep_high": 2.0}, "acts only with correction_keep"),
        ({"mode": "truncate", "keep": "sequence_product"}, "keeps every sequence without a bound"),
        ({"mode": "truncate", "keep": "token", "keep_high": 2.0}, "correction_keep 'token'"),
        (
            {"mode": "truncate", "keep": "sequence_product", "keep_low": 3.0, "keep_high": 2.0},
            "0 ≤ low < high",
        ),
        ({"keep": "sequence_product", "keep_high": 2.0}, "acts only with a correction_mode"),
    ],
)
def test_what_can_not_work_is_refused(options, message):
    with pytest.raises(ValueError, match=r".*") as error:
        correction(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vespo",
            {"correction_keep": "sequence_product", "correction_keep_high": 2.0},
            "takes the weights into its ratio",
        ),
        ("vespo", {"correction_normalize": True}, "correction_normalize: vespo"),
        (
            "dapo",
            {
                "correction_keep": "sequence_product",
                "correction_keep_high": 2.0,
                "correction_normalize": True,
                "rejected_tokens": "drop",
            },
            "rejected_tokens drop takes some out",
        ),
    ],
)
def test_what_does_not_go_with_a_loss_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_loss(name, correction_mode="truncate", **options)


def test_weights_over_their_mean_couple_the_update():
    assert make_loss("dapo", correction_mode="truncate").coupling == "token"
    assert make_loss("dapo", correction_mode="truncate", correction_normalize=True).needs_stats
    kept = make_loss(
        "dapo", correction_mode="truncate", correction_keep="sequence_product", correction_keep_high=2.0
    )
    assert kept.coupling == "sequence"


def test_diagnostics_of_sequences_against_loops():
    old = [[-0.5, -1.0, -0.25], [-2.0, -0.125]]
    sampler = [[-0.25, -1.5, -0.5], [-1.0, -0.5]]
    flat = [torch.tensor([x for row in rows for x in row], dtype=T64) for rows in (old, sampler)]
    found = of_sequences(*flat, torch.tensor([3, 2]))
    for i, (o, m) in enumerate(zip(old, sampler, strict=True)):
        product = math.prod(math.exp(a - b) for a, b in zip(o, m, strict=True))
        assert float(found["sampler/ppl"][i]) == pytest.approx(math.exp(-sum(m) / len(m)))
        assert float(found["sampler/trainer_ppl"][i]) == pytest.approx(math.exp(-sum(o) / len(o)))
        assert float(found["sampler/log_ppl_diff"][i]) == pytest.approx(sum(m) / len(m) - sum(o) / len(o))
        assert float(found["sampler/chi2_seq"][i]) == pytest.approx(product**2 - 1)
