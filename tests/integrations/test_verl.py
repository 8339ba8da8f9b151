"""grpokit's losses inside verl 0.9.1: its `ppo_loss`, micro-batch after micro-batch, against `policy_loss` at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch

from grpokit.integrations.verl_options import loss_from_verl
from grpokit.losses import LOSSES, LossBatch, make_loss, policy_loss
from helpers.inside_verl import LENGTHS, MiniBatch, actor_config, run_update

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("default"),  # verl's own, and those of what it imports
    pytest.mark.filterwarnings("ignore:loss_agg_mode"),
    pytest.mark.filterwarnings("ignore:epsilon .* geometric mean"),
]

ROOT = Path(__file__).resolve().parents[2]
MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant_length",
}
# Why verl can't compute a loss, and words of the message.
REFUSED = {
    "bnpo": "rank_token_mean, and verl tells a loss neither the tokens of a rank",
    "real": "couples the tokens of a whole group",
    "clip_cov": "couples the tokens of a whole step",
    "kl_cov": "couples the tokens of a whole step",
    "m2po": "couples the tokens of a whole step",
}
ON_THE_SAMPLER = ("dppo_tv", "dppo_kl")
POSSIBLE = [name for name in LOSSES if name not in REFUSED]
RANGE = {"clip_ratio_low": 0.15, "clip_ratio_high": 0.25, "clip_ratio_c": 1.6}
CLIP = {"epsilon": 0.15, "epsilon_high": 0.25}
# The options that RANGE and the temperatures below are for each loss.
MEANING = {
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "fipo"), CLIP | {"delta": 1.6}),
    **dict.fromkeys(("gspo", "gspo_token", "gmpo", "luspo"), CLIP),
    "cispo": {"epsilon_low_cap": 0.85, "epsilon_high": 1.25},
    "sapo": {"tau_pos": 1.1, "tau_neg": 1.3},
    "spo": {"epsilon": 0.15},
    **{name: {"dppo_delta": 0.15, "dppo_cap": 1.6} for name in ON_THE_SAMPLER},
}


def config_of(name, **fields):
    one_range = {"clip_ratio_high": 0.15} if name in (*ON_THE_SAMPLER, "spo") else {}
    taus = {"tau_pos": 1.1, "tau_neg": 1.3}
    return actor_config(
        f"grpokit/{name}", bypass=name in ON_THE_SAMPLER, **(RANGE | one_range | taus | fields)
    )


def whole_update(batch, name, reduction, factor=None, **options):
    """The gradient and value of `policy_loss` on the whole update at once, with weights by the formulas of the reductions."""
    rows, lengths = len(LENGTHS), batch.mask.sum(-1).double()
    weights = {
        "token_mean": torch.full_like(lengths, 1 / batch.num_tokens),
        "sequence_mean": 1 / (rows * lengths.clamp(min=1)),
        "sequence_sum": torch.full_like(lengths, 1 / rows),
        "constant_length": torch.full_like(lengths, 1 / (rows * 7)),
    }[reduction]
    if factor is not None:
        weights = weights[:, None] * factor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip ranges that sequence ratios never reach
        length = {"max_completion_length": 7} if reduction == "constant_length" else {}
        loss = make_loss(name, reduction=reduction, **options, **length)
    tokens = LossBatch.from_padded(
        batch.mask,
        logps=batch.logps,
        old_logps=batch.old,
        sampler_logps=batch.old if loss.needs_sampler else None,
        advantages=batch.advantages,
        weights=weights,
    )
    output = policy_loss(loss, tokens)
    return torch.autograd.grad(output.loss, batch.logps)[0], float(output.loss.detach())


def assert_same(one, other, tolerance=1e-10):
    assert one.norm() > 1e-3
    assert float((one - other).norm() / one.norm()) < tolerance


@pytest.fixture
def batch():
    return MiniBatch.make()


# --------------------------------------------------------------------------- one gradient


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", POSSIBLE)
def test_gradient_and_loss_are_those_of_the_whole_update(batch, name, mode):
    expected, value = whole_update(batch, name, MODES[mode], **MEANING.get(name, {}))
    for micro_batches, dp_size in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)):
        found, loss, _ = run_update(batch, config_of(name, loss_agg_mode=mode), micro_batches, dp_size)
        assert_same(expected, found)
        assert loss == pytest.approx(value, rel=1e-10)
        assert found[5].abs().sum() == 0  # the row without a trainable token


def test_every_loss_is_possible_or_refused():
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    ours = [name for name in POLICY_LOSS_REGISTRY if name.startswith("grpokit/")]
    assert ours == [f"grpokit/{name}" for name in LOSSES]


def test_update_without_a_trainable_token_has_no_gradient(batch):
    batch.mask[:] = False
    found, loss, metrics = run_update(batch, config_of("gspo", loss_agg_mode="seq-mean-token-mean"), 2)
    assert loss == 0
    assert not found.any()
    values = {name: metric.aggregate() for name, metric in metrics[0].items()}
    assert all(value == value for value in values.values()), values


# --------------------------------------------------------------------------- against verl's own losses

SAME = {
    "vanilla": "grpo",
    "gspo": "gspo",
    "sapo": "sapo",
    "gpg": "reinforce",
    "cispo": "cispo",
    "dppo_tv": "dppo_tv",
    "dppo_kl": "dppo_kl",
}


@pytest.mark.parametrize("names", [(), ("rollout_is_weights",)], ids=("plain", "rollout_is_weights"))
@pytest.mark.parametrize("theirs", SAME)
def test_gradient_is_that_of_verls_own_loss(batch, theirs, names):
    name = SAME[theirs]
    # verl's sapo has this mode whatever is set, with 1e-8 added to a row's tokens.
    modes = ["seq-mean-token-mean"] if theirs == "sapo" else MODES
    for mode in modes:
        ours = config_of(name, loss_agg_mode=mode)
        own = {
            key: ours.get(key)
            for key in ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")
        }
        expected, value, _ = run_update(batch, actor_config(theirs, loss_agg_mode=mode, **own), 2, 2, names)
        found, loss, _ = run_update(batch, ours, 2, 2, names)
        assert_same(expected, found, 1e-6 if "sapo" in theirs else 1e-7)
        assert loss == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", ["grpo", "gspo", "vespo"])
def test_rollout_weights_multiply_each_token(batch, name):
    expected, _ = whole_update(batch, name, "token_mean", batch.weights, **MEANING.get(name, {}))
    found, _, _ = run_update(batch, config_of(name), 4, 2, ["rollout_is_weights"])
    assert_same(expected, found)


def test_gradient_is_that_of_geo_mean_in_one_micro_batch(batch):
    batch.mask[5, 0] = True  # verl's divides by its rows, and gives one without a token a loss of 0
    found, _, _ = run_update(batch, config_of("gmpo", loss_agg_mode="seq-mean-token-mean"))
    assert_same(run_update(batch, actor_config("geo_mean", **RANGE))[0], found, 1e-7)


def test_terms_that_verl_adds_are_added(batch):
    terms = {"use_kl_loss": True, "kl_loss_coef": 0.3}
    expected = run_update(batch, actor_config("vanilla", **RANGE, **terms), 2, 2, ["ref_log_prob"])
    found = run_update(batch, config_of("grpo", **terms), 2, 2, ["ref_log_prob"])
    assert_same(expected[0], found[0])
    assert_same(found[0] + 1, run_update(batch, config_of("grpo"), 2, 2)[0] + 1, 1)  # the same size
    assert (found[0] - run_update(batch, config_of("grpo"), 2, 2)[0]).norm() > 1e-3


def test_metrics_have_verls_names(batch):
    theirs = run_update(batch, actor_config("vanilla"))[2][0]
    ours = run_update(batch, config_of("grpo", clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0))[2][
        0
    ]
    for name in ("actor/ppo_kl", "actor/pg_loss"):
        assert ours[name].aggregate() == pytest.approx(theirs[name].aggregate(), rel=1e-6)
    # grpokit counts only tokens with A ≠ 0, which can be clipped.
    live = (batch.mask & (batch.advantages != 0)).sum() / batch.num_tokens
    clipped = ours["actor/pg_clipfrac"].aggregate() * float(live)
    assert clipped == pytest.approx(theirs["actor/pg_clipfrac"].aggregate(), rel=1e-6)
    assert all(name.startswith("actor/") for name in ours)
    assert not any(name.endswith("max") for name in ours)


# --------------------------------------------------------------------------- options


def test_options_that_verl_lacks_are_in_policy_loss(batch):
    config = actor_config("grpokit/vespo", {"vespo_k_pos": 1.5})
    expected, _ = whole_update(batch, "vespo", "token_mean", vespo_k_pos=1.5)
    assert_same(expected, run_update(batch, config, 2)[0])


def test_options_in_policy_loss_replace_those_of_the_actor(batch):
    config = actor_config("grpokit/dapo", {"epsilon_high": 0.28, "delta": None}, **RANGE)
    expected, _ = whole_update(batch, "dapo", "token_mean", epsilon=0.15, epsilon_high=0.28)
    assert_same(expected, run_update(batch, config, 2)[0])


def test_clip_ratio_stands_for_both_sides_where_they_are_null(batch):
    config = actor_config("grpokit/grpo", clip_ratio=0.1, clip_ratio_low=None, clip_ratio_high=None)
    expected, _ = whole_update(batch, "grpo", "token_mean", epsilon=0.1, epsilon_high=0.1, delta=3.0)
    assert_same(expected, run_update(batch, config)[0])


SEQUENCES = {"loss_agg_mode": "seq-mean-token-mean"}
PAPERS = {
    "grpo": SEQUENCES,
    "dr_grpo": {"loss_agg_mode": "seq-mean-token-sum-norm"},
    "dapo": {"clip_ratio_high": 0.28},
    "cispo": {"clip_ratio_low": 1, "clip_ratio_high": 4},
    "sapo": SEQUENCES,
    "gspo": SEQUENCES | {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4},
    "gspo_token": SEQUENCES | {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4},
    "gmpo": SEQUENCES | {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4},
    "luspo": {"loss_agg_mode": "seq-mean-token-sum", "clip_ratio_low": 2e-3, "clip_ratio_high": 2.5e-3},
    "vespo": {},
    "dppo_tv": {"clip_ratio_c": 20},
    "dppo_kl": {"clip_ratio_c": 20, "clip_ratio_low": 0.05, "clip_ratio_high": 0.05},
    "spo": SEQUENCES,
    "reinforce": {},
    "importance_sampling": {},
    "fipo": {},
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_settings_of_the_page_are_those_of_the_paper(name):
    papers = make_loss(name)
    options = {"delta": None} if "delta" in papers.options and papers.ratio_level == "token" else {}
    config = actor_config(f"grpokit/{name}", options, bypass=name in ON_THE_SAMPLER, **PAPERS[name])
    found = loss_from_verl(name, config, config.loss_agg_mode)
    assert (found.reduction, dict(found.options)) == (papers.reduction, dict(papers.options))


def test_dual_clip_is_for_ratios_of_tokens_as_in_verl():
    for ratio_level, delta in (("token", 1.6), ("sequence", None)):
        config = actor_config("grpokit/grpo", {"ratio_level": ratio_level}, **RANGE)
        assert loss_from_verl("grpo", config, "token-mean").options["delta"] == delta


def test_reduction_that_is_not_the_losss_own_is_said_once(batch, monkeypatch):
    import grpokit.integrations.verl as module

    monkeypatch.setattr(module, "_noted", set())
    with pytest.warns(UserWarning, match="set actor.loss_agg_mode=seq-mean-token-sum-norm for that") as seen:
        run_update(batch, config_of("dr_grpo"), 4)
    assert len(seen) == 1


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", REFUSED)
def test_loss_that_verl_cannot_compute_says_why(batch, name):
    with pytest.raises(ValueError, match=f"grpokit/{name}: .*{REFUSED[name]}"):
        run_update(batch, actor_config(f"grpokit/{name}"))


@pytest.mark.parametrize("name", ON_THE_SAMPLER)
def test_ratio_to_the_sampler_needs_bypass_mode(batch, name):
    with pytest.raises(ValueError, match=r"policy_loss\.rollout_correction\.bypass_mode=true"):
        run_update(batch, actor_config(f"grpokit/{name}"))


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({"loss_agg_mode": "token-sum"}, {}, "loss_agg_mode 'token-sum': .* token-mean"),
        (
            {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": None},
            {},
            "set actor.loss_scale_factor",
        ),
        ({}, {"reduction": "prompt_mean"}, "reduction prompt_mean: .*loss_agg_mode"),
        ({}, {"beta": 0.1}, "kl_loss_coef"),
        ({}, {"entropy_coef": 0.1}, "entropy_coeff"),
        ({}, {"top_entropy_quantile": 0.2}, "whole update, before the first backward"),
        ({}, {"correction_mode": "truncate"}, "algorithm.rollout_correction"),
        ({}, {"opsm_threshold": 0.1}, "the sampler's log-probs"),
        ({}, {"vespo_k_pos": 0.2}, "vespo_k_pos 0.2: not used by loss_type grpo"),
        ({}, {"epsilon": "wide"}, "epsilon 'wide': must be a number"),
    ],
)
def test_option_that_cannot_work_says_what_does(batch, fields, options, words):
    with pytest.raises(ValueError, match=words):
        run_update(batch, actor_config("grpokit/grpo", options, **fields))


def test_two_ranges_are_refused_where_the_loss_has_one(batch):
    with pytest.raises(ValueError, match=r"clip_ratio_low 0.15, clip_ratio_high 0.25: .* set both to 0.15"):
        run_update(batch, actor_config("grpokit/spo", **RANGE))
    run_update(batch, actor_config("grpokit/spo", {"epsilon": 0.2}, **RANGE))


@pytest.mark.parametrize("number", ["global_batch_size", "batch_num_tokens"])
def test_numbers_of_the_mini_batch_must_be_there(batch, number):
    with pytest.raises(ValueError, match=f"{number} None"):
        run_update(batch, config_of("grpo"), **{number: None})


def test_another_version_of_verl_is_refused(monkeypatch):
    import verl

    from grpokit.integrations.versions import import_tested

    monkeypatch.setattr(verl, "__version__", "0.10.0")
    with pytest.raises(ImportError, match=r"verl 0\.10\.0: .* 0\.9 is the tested one"):
        import_tested("verl", "0.9")


# --------------------------------------------------------------------------- registration

CHECK = "from verl.trainer.ppo.core_algos import get_policy_loss_fn; print(get_policy_loss_fn('grpokit/gmpo').__name__)"
BY_CONFIG = """
import pathlib, sys, verl
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass
with initialize_config_dir(str(pathlib.Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
    actor = compose("ppo_trainer", overrides=[
        "actor_rollout_ref.actor.policy_loss._target_=grpokit.integrations.verl.PolicyLossConfig",
        "actor_rollout_ref.actor.policy_loss.loss_mode=grpokit/vespo",
        "+actor_rollout_ref.actor.policy_loss.grpokit.vespo_k_pos=1.5",
        "+actor_rollout_ref.actor.policy_loss.rollout_correction.bypass_mode=true",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    ]).actor_rollout_ref.actor
assert "grpokit.integrations.verl" not in sys.modules
config = omega_conf_to_dataclass(actor)
from grpokit.integrations.verl_options import _bypasses, loss_from_verl
assert loss_from_verl("vespo", config, config.loss_agg_mode).options["vespo_k_pos"] == 1.5
assert _bypasses(config)
"""
NO_PLUGINS = {"VERL_USE_EXTERNAL_PLUGINS": "none"}
BY_EXTERNAL_LIB = """
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.workers.config import HFModelConfig
del sys.modules["grpokit.integrations.verl"]
for name in [name for name in POLICY_LOSS_REGISTRY if name.startswith("grpokit/")]:
    del POLICY_LOSS_REGISTRY[name]
try:
    HFModelConfig(path="/nowhere", external_lib="grpokit.integrations.verl")
except Exception as error:
    assert "/nowhere" in str(error), error
"""
MECHANISMS = {
    "entry point": ({}, "import verl"),
    "environment": (NO_PLUGINS | {"VERL_USE_EXTERNAL_MODULES": "grpokit.integrations.verl"}, "import verl"),
    "config and external_lib": (NO_PLUGINS, BY_CONFIG + BY_EXTERNAL_LIB),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """One fresh process for each mechanism, all started at once."""
    metadata = tmp_path_factory.mktemp("installed") / "grpokit_here-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: grpokit-here\nVersion: 1\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"{name} = {value}\n" for name, value in project["entry-points"]["verl.plugins"].items()]
    (metadata / "entry_points.txt").write_text("[verl.plugins]\n" + "".join(lines))
    path = os.pathsep.join([str(metadata.parent), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", f"{program}\n{CHECK}"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (variables, program) in MECHANISMS.items()
    }


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_losses_are_registered_in_a_fresh_process(processes, mechanism):
    output, errors = processes[mechanism].communicate(timeout=120)
    assert output.strip().endswith("compute_policy_loss_grpokit_gmpo"), errors[-3000:]
