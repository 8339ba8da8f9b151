"""One gradient at any scale: the same run on 1, 2 and 4 ranks, in any micro-batches of any form, in float64."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grpokit.config.yaml import to_yaml
from helpers import forked
from helpers.launch import rows, torchrun
from helpers.ranks import LOSSES, SHARDS, STEPS, cuts_of, losses_of
from helpers.tiny import make_model_dir, tiny_config

QUICK = ("dapo", "bnpo")  # what `make test` has time for


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs(ranks, loss) -> a directory that has this loss's runs in all cuts: DIR/ranks-N/LOSS-CUT/."""
    directory = tmp_path_factory.mktemp("ranks")
    tiny_config(directory)

    @functools.cache
    def made(ranks: int, losses: tuple[str, ...]) -> Path:
        done = forked.run("helpers.ranks", directory, f"ranks-{ranks}", *losses, ranks=ranks)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return directory

    def runs_of(ranks: int, loss: str) -> Path:
        return made(ranks, tuple(name for name in losses_of(ranks) if (name in QUICK) == (loss in QUICK)))

    return runs_of


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def assert_same_run(run: Path, expected: Path) -> None:
    ours, theirs = weights(run), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-10)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for ours, theirs in zip(rows(run, name), rows(expected, name), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-10)
    for ours, theirs in zip(rows(run, "completions.jsonl"), rows(expected, "completions.jsonl"), strict=True):
        assert ours["completions"] == theirs["completions"]
        assert ours["prompt"] == theirs["prompt"]
        assert ours.get("extras") == theirs.get("extras")
        assert ours["advantages"] == pytest.approx(theirs["advantages"], rel=1e-9, abs=1e-10)


LAYOUTS = [
    pytest.param(loss, ranks, marks=[] if loss in QUICK and ranks < 4 else [pytest.mark.slow])
    for ranks in (1, 2, 4)
    for loss in losses_of(ranks)
]


@pytest.mark.parametrize(("loss", "ranks"), LAYOUTS)
def test_the_same_run_however_it_is_cut(runs, loss, ranks):
    # bnpo divides by its own rank's tokens: it is what it is for a number of ranks, whatever the cut there
    base_ranks = ranks if loss == "bnpo" else 1
    base = runs(base_ranks, loss) / f"ranks-{base_ranks}" / f"{loss}-{cuts_of(base_ranks)[0]}"
    for cut in cuts_of(ranks):
        assert_same_run(runs(ranks, loss) / f"ranks-{ranks}" / f"{loss}-{cut}", base)


def test_bnpo_depends_on_the_ranks(runs):
    one, two = (weights(runs(ranks, "bnpo") / f"ranks-{ranks}" / "bnpo-padded-10000") for ranks in (1, 2))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) > 1e-6


@pytest.mark.slow
def test_the_runs_have_learned_something_different(runs):
    """Runs that don't move, or losses that are all the same, would hide a mistake."""
    final = {loss: weights(runs(1, loss) / "ranks-1" / f"{loss}-padded-10000") for loss in LOSSES}
    start = load_file(runs(1, "dapo") / "model" / "model.safetensors")
    flat = {
        k: torch.cat([w[n].flatten() - start[n].double().flatten() for n in start]) for k, w in final.items()
    }
    for loss, moved in flat.items():
        assert moved.abs().max() > 1e-3, loss
        others = [float((moved - flat[other]).abs().max()) for other in flat if other != loss]
        assert min(others) > 1e-6, loss


@pytest.mark.slow
@pytest.mark.parametrize("shard", SHARDS)
def test_replicas_and_recomputed_activations_change_nothing(runs, shard):
    base = runs(1, "dapo") / "ranks-1" / "dapo-padded-10000"
    assert_same_run(runs(4, "dapo") / "ranks-4" / f"dapo-{shard}", base)


@pytest.mark.slow
def test_the_command_line_trains_on_ranks_and_resumes_on_another_number(runs, tmp_path):
    directory = runs(1, "dapo")
    config = tiny_config(
        directory,
        output_dir=str(tmp_path / "run"),
        max_steps=STEPS,
        log_completions=2,
        eval_dataset=str(directory / "train.jsonl"),
        eval_steps=2,
        eval_samples=3,
        eval_generations=2,
        updates_per_step=2,
        save_steps=1,
        save_total_limit=2,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = ("-m", "grpokit", "train", "--config", str(tmp_path / "run.yaml"))
    half = torchrun(2, *command, "--max_steps", "2", "--save_steps", "2")
    assert half.returncode == 0, half.stderr[-3000:]
    assert half.stdout.count("plan:") == 1
    assert "2 ranks" in half.stdout
    done = torchrun(4, *command, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"))
    assert done.returncode == 0, done.stderr[-3000:]
    # an evaluation at the end of the first half is one more row; the runs are the same else
    assert_same_run(tmp_path / "run", directory / "ranks-1" / "dapo-padded-10000")
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


FEW = {
    "plain": {},
    "adapter, reference and evaluation": {
        "lora_r": 2,
        "beta": 0.1,
        "eval_samples": 1,
        "eval_generations": 2,
        "eval_steps": 1,
    },
}


@pytest.mark.parametrize(
    ("ranks", "kind"),
    [
        (2, "plain"),
        pytest.param(3, "adapter, reference and evaluation", marks=pytest.mark.slow),
    ],
)
def test_fewer_prompts_than_ranks_train_as_one_process(tmp_path, ranks, kind):
    """A rank without prompts samples nothing, and gathers weights in training as the others do."""
    ends = []
    make_model_dir(tmp_path / "model", layers=3)
    for name, size in (("one", 1), ("many", ranks)):
        config = tiny_config(
            tmp_path, prompts_per_step=1, num_generations=8, output_dir=str(tmp_path / name), **FEW[kind]
        )
        if "eval_steps" in FEW[kind]:
            config = dataclasses.replace(config, eval_dataset=config.dataset)
        (tmp_path / f"{name}.yaml").write_text(to_yaml(config))
        done = forked.run("grpokit", "train", "--config", tmp_path / f"{name}.yaml", ranks=size, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        ends.append(load_file(tmp_path / name / "final" / "model.safetensors"))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=1e-10)
