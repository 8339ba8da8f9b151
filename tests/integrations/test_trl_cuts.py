"""grpokit's losses inside TRL's GRPOTrainer: one gradient, in any number of micro-batches and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from grpokit.losses import LOSSES
from helpers.inside_trl import assert_same, gradient, make_trainer
from helpers.places import HELPERS

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("default"),  # TRL's own, and those of what it imports
]

JOBS = {
    name: {"loss": name} | ({"epsilon_high": 5.0} if name == "cispo" else {})
    for name, row in LOSSES.items()
    if not row.surrogate.startswith("dppo")  # they need a sampler
} | {
    "prompt_mean": {"loss": "dapo", "kwargs": {"reduction": "prompt_mean"}},
    "entropy": {"loss": "grpo", "top_entropy_quantile": 0.5, "entropy_coef": 0.1},
    "kl": {"loss": "dapo", "beta": 0.1},
    "masked": {"loss": "grpo", "mask_truncated_completions": True},
    "selecting": {"loss": "clip_cov", "kwargs": {"cov_low": -9.0, "cov_ratio": 0.3}},
}
for job in JOBS.values():
    job["pad_to_multiple_of"] = 8  # the same positions, and so the same rounding, on every rank
COUPLED = ("real", "selecting", "kl_cov", "m2po", "entropy", "prompt_mean")
# On two processes: all in two micro-batches each, and some in one.
ON_TWO = {f"{name} cut": job | {"micro_batches": 2} for name, job in JOBS.items()} | {
    name: JOBS[name] for name in ("dapo", "real", "selecting")
}
THEIRS = {"theirs": {"loss": "bnpo", "own": True, "pad_to_multiple_of": 8}}


@pytest.fixture(scope="module")
def two_processes(folder, tmp_path_factory):
    """Gradients and logs of ON_TWO on two processes, and of TRL's bnpo."""
    from safetensors.torch import load_file

    jobs = tmp_path_factory.mktemp("ranks") / "jobs.json"
    jobs.write_text(json.dumps(ON_TWO | THEIRS))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    path = os.pathsep.join(filter(None, [str(HELPERS.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, str(HELPERS / "inside_trl.py"), str(folder), str(jobs)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return load_file(jobs.with_suffix(".safetensors")), json.loads(jobs.with_suffix(".logs.json").read_text())


@pytest.fixture(scope="module")
def whole(folder):
    """The gradient of a job in one micro-batch on one process, and the log of its step; computed once."""
    found = {}

    def compute(name):
        if name not in found:
            trainer = make_trainer(folder, **JOBS[name])
            trainer.train()
            found[name] = trainer.gradients[0], trainer.state.log_history[0]
        return found[name]

    return compute


@pytest.mark.parametrize("name", JOBS)
def test_gradient_is_the_same_in_four_micro_batches(folder, whole, name):
    assert_same(whole(name)[0], gradient(folder, **JOBS[name], micro_batches=4), 1e-10)


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dapo", *COUPLED])
def test_gradient_is_the_same_in_two_micro_batches(folder, whole, name):
    assert_same(whole(name)[0], gradient(folder, **JOBS[name], micro_batches=2), 1e-10)


@pytest.mark.parametrize("name", ON_TWO)
def test_gradient_is_the_same_on_two_processes(whole, two_processes, name):
    loss = name.removesuffix(" cut")
    same = loss != "bnpo"  # it is a mean over each rank's tokens, by its definition
    if same:
        assert_same(whole(loss)[0], two_processes[0][name], 1e-10)
    else:
        assert (whole(loss)[0] - two_processes[0][name]).norm() > 1e-3


def test_bnpo_of_trl_changes_with_the_micro_batches(folder, whole):
    theirs = gradient(folder, **THEIRS["theirs"])
    assert_same(whole("bnpo")[0], theirs, 1e-6)
    cut = gradient(folder, **THEIRS["theirs"], micro_batches=4)
    assert (cut - theirs).norm() > 0.01 * theirs.norm()


@pytest.mark.parametrize("name", ["grpo", "real", "selecting", "kl"])
def test_metrics_are_the_same_on_two_processes(whole, two_processes, name):
    one, two = whole(name)[1], two_processes[1][f"{name} cut"]
    apart = {"step_time", "epoch"}
    assert one.keys() == two.keys()
    for key in one.keys() - apart:
        assert one[key] == pytest.approx(two[key], rel=1e-6), key  # TRL's rewards are float32
    assert {"loss", "ratio/mean", "ratio/max", "entropy", "reward"} <= one.keys()
    assert ("kl" in one) == (name == "kl")
    assert ("clip_cov/selected" in one) == (name == "selecting")
