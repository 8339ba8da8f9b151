"""A GRPOConfig → a loss of grpokit's, without TRL."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from grpokit.config.foreign_defaults import TRL_CONFIG
from grpokit.integrations.trl_options import check_window, loss_from_trl
from grpokit.losses import make_loss


def config(**options):
    return SimpleNamespace(**(TRL_CONFIG | {"max_completion_length": 64, "epsilon_high": None} | options))


@pytest.mark.parametrize(
    ("options", "name", "kwargs", "expected"),
    [
        ({}, None, {}, make_loss("dapo", epsilon_high=0.2)),
        ({"loss_type": "grpo", "beta": 0.1}, None, {}, make_loss("grpo", beta=0.1, kl_gradient="ratio")),
        ({"beta": 0.1, "use_bias_correction_kl": False}, "grpo", {}, make_loss("grpo", beta=0.1)),
        ({}, "bnpo", {}, make_loss("bnpo")),
        ({"scale_rewards": "none"}, "dr_grpo", {}, make_loss("dr_grpo", max_completion_length=64)),
        ({}, "luspo", {}, make_loss("grpo", reduction="sequence_sum")),
        ({"epsilon_high": 5.0}, "cispo", {}, make_loss("cispo")),
        ({}, "cispo", {"epsilon_high": 4.0}, make_loss("cispo", epsilon_high=4.0)),
        ({"sapo_temperature_neg": 2.0}, "sapo", {}, make_loss("sapo", tau_neg=2.0)),
        ({"vespo_k_pos": 1.5}, "vespo", {}, make_loss("vespo", vespo_k_pos=1.5)),
        ({}, "gmpo", {}, make_loss("gmpo")),
        ({"epsilon": 0.3}, "gmpo", {}, make_loss("gmpo", epsilon=0.3, epsilon_high=0.3)),
        ({}, "gspo", {}, make_loss("gspo")),
        ({}, "spo", {"epsilon": 0.1}, make_loss("spo", epsilon=0.1)),
        ({"entropy_coef": 0.1, "top_entropy_quantile": 0.2}, "real", {"real_tau": 0.3}, None),
        (
            {"use_vllm": True},
            "gmpo",
            {},
            make_loss(
                "gmpo",
                correction_mode="mask",
                correction_level="sequence_product",
                correction_low=0.0,
                correction_high=3.0,
            ),
        ),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, "gmpo", {}, make_loss("gmpo")),
    ],
)
def test_options_have_trls_meaning_for_its_losses_and_the_papers_for_others(options, name, kwargs, expected):
    if expected is None:
        expected = make_loss("real", entropy_coef=0.1, top_entropy_quantile=0.2, **kwargs)
    found = loss_from_trl(config(**options), name, kwargs)
    assert (found, dict(found.options)) == (expected, dict(expected.options))


def test_a_loss_is_taken_as_it_is():
    loss = make_loss("gmpo", epsilon=0.1)
    assert loss_from_trl(config(epsilon=0.3), loss) is loss


@pytest.mark.parametrize(("accumulation", "generation"), [(1, 1), (1, 4), (2, 4), (4, 4)])
def test_steps_inside_a_generation_are_taken(accumulation, generation):
    check_window(accumulation, generation)


@pytest.mark.parametrize(
    ("accumulation", "generation", "message"),
    [
        (3, 4, "set gradient_accumulation_steps to 1, 2 or 4, or steps_per_generation to 3 or 6"),
        (4, 2, "set gradient_accumulation_steps to 1 or 2, or steps_per_generation to 4 or 8"),
        (2, 1, "set gradient_accumulation_steps to 1, or steps_per_generation to 2 or 4"),
    ],
)
def test_steps_over_two_generations_are_refused_with_values_that_work(accumulation, generation, message):
    with pytest.raises(ValueError, match=f"gradient_accumulation_steps {accumulation}: .*{message}$"):
        check_window(accumulation, generation)


def test_missing_trl_is_said(monkeypatch):
    from grpokit.integrations import trl

    trl._trainer_class.cache_clear()
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"needs trl 1\.16, .*: pip install 'grpokit\[trl\]'"):
        _ = trl.GRPOTrainer
