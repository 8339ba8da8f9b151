"""grpokit's losses inside TRL's GRPOTrainer, against TRL 1.16 itself and against `policy_loss` on the whole step at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from grpokit.integrations.trl_options import check_window, loss_from_trl
from grpokit.losses import (
    LOSSES,
    Counts,
    LossBatch,
    UpdateStats,
    make_loss,
    policy_loss,
    register,
    sequence_weights,
)
from helpers.inside_trl import gradient, loaded, make_models, make_trainer
from helpers.places import HELPERS

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("default"),  # TRL's own, and those of what it imports
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def stand_in_for_vllm(monkeypatch):
    """TRL believes that vLLM samples; the completions are fixed."""
    from unittest.mock import MagicMock

    import trl.trainer.grpo_trainer as module

    monkeypatch.setattr(module, "VLLMGeneration", MagicMock())


# --------------------------------------------------------------------------- against TRL

# Options with which TRL's gradient, of one micro-batch on one process, is the gradient that is meant.
AS_IN_TRL = {
    "grpo": {},
    "bnpo": {},
    "dr_grpo": {"scale_rewards": "none"},
    "dr_grpo scaled": {},
    "dapo": {},
    "dapo clip-higher": {"epsilon_high": 0.28},
    "cispo": {"epsilon_high": 1.2},
    "sapo": {"sapo_temperature_pos": 2.0},
    "luspo": {"importance_sampling_level": "sequence", "epsilon": 0.01, "epsilon_high": 0.02},
    "luspo of tokens": {},
    "vespo": {"vespo_k_pos": 1.5},
    "grpo two-sided": {"delta": 1.25, "epsilon_high": 0.1},
    "grpo of sequences": {"importance_sampling_level": "sequence", "epsilon": 0.01},
    "grpo kl": {"beta": 0.1},
    "dapo kl of its own": {"beta": 0.1, "use_bias_correction_kl": False},
    "dapo opsm": {"off_policy_mask_threshold": 0.01},
    "dapo top entropy": {"top_entropy_quantile": 0.5},
    "dapo masked": {"mask_truncated_completions": True},
    "dapo bonus": {"entropy_coef": 0.1},
}
UNDER_VLLM = {
    "dapo sequence mask": {},
    "dapo token truncate": {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.1},
    "dapo both bounds": {
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.1,
        "vllm_importance_sampling_clip_min": 0.9,
    },
    "grpo token mask": {"vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_min": 0.8},
    "vespo token mask": {"vllm_importance_sampling_mode": "token_truncate"},
}


def assert_same(one, other, tolerance):
    assert one.norm() > 1e-3
    assert float((one - other).norm() / one.norm()) < tolerance


@pytest.mark.parametrize("name", AS_IN_TRL)
def test_gradient_of_a_loss_of_trl_is_trls(folder, name):
    loss, options = name.split()[0], AS_IN_TRL[name]
    theirs = gradient(folder, loss, own=True, **options)
    assert_same(gradient(folder, loss, **options), theirs, 1e-6)  # TRL's log-probs are float32


@pytest.mark.parametrize("name", UNDER_VLLM)
def test_correction_for_vllm_is_trls(folder, name, stand_in_for_vllm):
    loss, options = name.split()[0], {"use_vllm": True} | UNDER_VLLM[name]
    theirs = gradient(folder, loss, own=True, **options)
    assert_same(gradient(folder, loss, **options), theirs, 1e-6)


# --------------------------------------------------------------------------- one gradient

LENGTH = {"reduction": "prompt_mean"}
JOBS = {
    name: {"loss": name} | ({"epsilon_high": 5.0} if name == "cispo" else {})
    for name, row in LOSSES.items()
    if not row.surrogate.startswith("dppo")  # they need a sampler
} | {
    "prompt_mean": {"loss": "dapo", "kwargs": {"reduction": "prompt_mean"}},
    "entropy": {"loss": "grpo", "top_entropy_quantile": 0.5, "entropy_coef": 0.1},
    "kl": {"loss": "dapo", "beta": 0.1},
    "masked": {"loss": "grpo", "mask_truncated_completions": True},
}
COMMON = {"pad_to_multiple_of": 8, "epsilon": 0.02}  # the same positions, and so the same rounding, on every rank


def on_policy_epsilon(job):
    """Sequence ratios have clip ranges of their own."""
    return {key: value for key, value in COMMON.items() if key != "epsilon"} | job


@pytest.fixture(scope="module")
def two_ranks(folder, tmp_path_factory):
    """Gradients and logs of the jobs on two processes, and those of TRL's bnpo."""
    jobs = tmp_path_factory.mktemp("ranks") / "jobs.json"
    both = {name: on_policy_epsilon(job) for name, job in JOBS.items()}
    cut = {f"{name} cut": job | {"micro_batches": 2} for name, job in both.items()}
    theirs = {"theirs": {"loss": "bnpo", "own": True} | on_policy_epsilon({})}
    jobs.write_text(json.dumps(both | cut | theirs))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, str(HELPERS / "inside_trl.py"), str(folder), str(jobs)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    from safetensors.torch import load_file

    return load_file(jobs.with_suffix(".safetensors")), json.loads(jobs.with_suffix(".logs.json").read_text())


@pytest.fixture(scope="module")
def whole(folder):
    """The gradient of a job in one micro-batch on one process, and the log of its step; computed once."""
    found = {}

    def compute(name):
        if name not in found:
            trainer = make_trainer(folder, **on_policy_epsilon(JOBS[name]))
            trainer.train()
            found[name] = trainer.gradients[0], trainer.state.log_history[0]
        return found[name]

    return compute


@pytest.mark.parametrize("micro_batches", [2, 4])
@pytest.mark.parametrize("name", JOBS)
def test_gradient_is_the_same_in_several_micro_batches(folder, whole, name, micro_batches):
    job = on_policy_epsilon(JOBS[name]) | {"micro_batches": micro_batches}
    assert_same(whole(name)[0], gradient(folder, **job), 1e-10)


@pytest.mark.parametrize("name", [name for name in JOBS if name != "bnpo"])
def test_gradient_is_the_same_on_two_processes(whole, two_ranks, name):
    gradients, _ = two_ranks
    assert_same(whole(name)[0], gradients[name], 1e-10)
    assert_same(whole(name)[0], gradients[f"{name} cut"], 1e-10)
