"""Configurations that cannot work are refused, naming the option, its value and one that does."""

from __future__ import annotations

import re

import pytest
import torch

from grpokit.losses import LOSSES, Counts, LossBatch, loss_options, make_loss, policy_loss, sequence_weights
from grpokit.types import Metric


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("grop", {}, ["grop", "did you mean 'grpo'", "dapo"]),
        ("cispo", {"epsilon_high": 0.2}, ["epsilon_high", "0.2", "absolute cap", "5.0"]),
        ("cispo", {"epsilon": 0.2}, ["epsilon", "not used by loss_type cispo", "epsilon_high"]),
        ("cispo", {"epsilon_low_cap": 1.5}, ["epsilon_low_cap", "1.5"]),
        ("sapo", {"epsilon": 0.2}, ["epsilon", "not used by loss_type sapo", "tau_pos"]),
        ("sapo", {"tau_pos": 0.0}, ["tau_pos", "above 0"]),
        ("sapo", {"sapo_gain": "papper"}, ["sapo_gain", "papper", "paper, none"]),
        ("grpo", {"tau_pos": 1.0}, ["tau_pos", "not used by loss_type grpo"]),
        ("grpo", {"epsilonhigh": 0.3}, ["epsilonhigh", "did you mean epsilon_high"]),
        ("grpo", {"max_completion_length": 16}, ["max_completion_length", "not used"]),
        ("grpo", {"epsilon": 0.0}, ["epsilon", "above 0"]),
        ("grpo", {"epsilon": 1.2}, ["epsilon 1.2", "below 1"]),
        ("grpo", {"epsilon": "0.2"}, ["epsilon '0.2'", "number"]),
        ("grpo", {"delta": 1.1}, ["delta 1.1", "1 + epsilon_high = 1.2"]),
        ("dapo", {"delta": 1.28}, ["delta 1.28", "1.28"]),
        ("grpo", {"beta": -1.0}, ["beta -1.0", "0.04"]),
        ("grpo", {"beta": float("nan")}, ["beta nan"]),
        ("dr_grpo", {"max_completion_length": 0}, ["max_completion_length 0"]),
        ("grpo", {"reduction": "mean"}, ["reduction 'mean'", "token_mean"]),
        ("grpo", {"surrogate": "clp"}, ["surrogate 'clp'", "'clip'"]),
        ("grpo", {"ratio_level": "word"}, ["ratio_level 'word'", "token"]),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        make_loss(name, **options)
    for word in words:
        assert word in str(error.value)


def test_dr_grpo_without_its_length_says_so_when_it_is_needed():
    with pytest.raises(ValueError, match="max_completion_length"):
        sequence_weights(make_loss("dr_grpo"), torch.tensor([1]), Counts.of(torch.tensor([1])))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("weights", torch.ones(2), "sequence_ids"),
        ("old_logps", torch.ones(4), r"old_logps has shape \[4\]"),
        ("sequence_ids", torch.ones(3), "sequence_ids is torch.float32; expected an integer"),
        ("advantages", torch.ones(3, dtype=torch.long), "advantages is torch.int64; expected a floating"),
        ("logps", torch.ones(3, 1), "flat list"),
    ],
)
def test_batches_of_wrong_shapes_and_types_are_refused(field, value, words):
    fields = {
        "logps": torch.ones(3),
        "advantages": torch.ones(3),
        "weights": torch.ones(3),
        "sequence_ids": torch.arange(3),
    }
    with pytest.raises(ValueError, match=words):
        LossBatch(**(fields | {field: value}))


def test_from_padded_names_the_field():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"advantages has shape \[3\]"):
        LossBatch.from_padded(x > 0, logps=x, advantages=torch.ones(3), weights=torch.ones(2))


def test_a_kl_penalty_needs_a_reference():
    one = torch.ones(1)
    batch = LossBatch(logps=one, advantages=one, weights=one, sequence_ids=torch.tensor([0]))
    with pytest.raises(ValueError, match="ref_logps"):
        policy_loss(make_loss("grpo", beta=0.04), batch)


def test_prompt_mean_needs_groups():
    loss = make_loss("dapo", reduction="prompt_mean")
    with pytest.raises(ValueError, match="group_ids"):
        sequence_weights(loss, torch.tensor([1]), Counts.of(torch.tensor([1])))


def test_counts_are_joined_across_ranks_once():
    joined = Counts.across_ranks([Counts.of(torch.tensor([1])), Counts.of(torch.tensor([2]))])
    with pytest.raises(ValueError, match="across ranks"):
        joined[0] + joined[1]


def test_rows_have_their_papers_defaults():
    """A row's own ε_high stays when only epsilon is given; else ε_high follows ε."""
    assert make_loss("dapo", epsilon=0.1).options["epsilon_high"] == 0.28
    assert make_loss("grpo", epsilon=0.1).options["epsilon_high"] == 0.1
    assert make_loss("grpo").options == {"epsilon": 0.2, "epsilon_high": 0.2, "delta": None}
    assert make_loss("cispo").options == {"epsilon_high": 5.0, "epsilon_low_cap": 0.0}
    assert make_loss("grpo", epsilon=None, tau_pos=None) == make_loss("grpo")
    assert {name: row.scale_rewards for name, row in LOSSES.items() if row.scale_rewards != "group"} == {
        "dr_grpo": "none"
    }


def test_every_row_of_the_table_composes_and_prints():
    for name in LOSSES:
        loss = make_loss(name)
        assert name in str(loss)
        parts = 1 if loss.surrogate.weighs_itself else 3 + (loss.ratio_level != "token")
        assert len(loss.formula.splitlines()) == parts
        assert set(loss.options) | {"beta"} <= loss_options(name)


def test_a_replaced_surrogate_brings_its_own_defaults():
    loss = make_loss("grpo", surrogate="sapo")
    assert loss.options["tau_neg"] == 1.05
    assert loss.reduction == "sequence_mean"


def test_metric_kinds_do_not_mix():
    with pytest.raises(ValueError, match="cannot join"):
        Metric.mean(torch.ones(1)) + Metric.sum(torch.ones(1))


def test_metrics_have_hand_made_values():
    x = torch.tensor([1.0, 2.0, 4.0])
    assert Metric.derived("std", x).value == pytest.approx(float(x.std()))
    assert (Metric.max(x) + Metric.max(torch.tensor([]))).value == 4.0
    assert (Metric.sum(x) + Metric.sum(x)).value == 14.0
    assert Metric.derived("ess", x).value == pytest.approx(49 / (3 * 21))
