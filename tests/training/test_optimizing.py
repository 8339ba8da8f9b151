"""The options of docs/en/optimizing.md: the same run under cuts and on ranks, and resume to the byte."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import forked
from helpers.launch import rows
from helpers.optimizing import JOBS
from helpers.tiny import make_model_dir

FILES = {"adapter": "model.safetensors", "4bit": "adapter_model.safetensors"}
EXACT = ("whole", "adapter")  # in float64
LAYOUTS = {"one": (1, "padded-10000"), "two": (2, "shared-60")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs(layout) -> the directory DIR/LAYOUT, which has a run JOB and a run JOB-resumed for each job."""
    directory = tmp_path_factory.mktemp("optimizing")
    make_model_dir(directory / "model", hidden=64)  # wide enough for moments in 8 bits

    @functools.cache
    def made(layout: str) -> Path:
        ranks, cut = LAYOUTS[layout]
        done = forked.run("helpers.optimizing", directory, layout, cut, *JOBS, ranks=ranks)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return directory / layout

    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The trained parameters, in full precision: what the last checkpoint holds."""
    files = [
        *run.glob("checkpoint-4/*.safetensors"),
        run / "checkpoint-4" / "trainer" / "parameters.safetensors",
    ]
    return {name: tensor for file in files if file.is_file() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("job", EXACT)
def test_two_ranks_train_as_one(runs, job):
    one, two = (runs(layout) / job for layout in LAYOUTS)
    theirs, ours = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].double(), tensor.double(), rtol=0, atol=1e-10)
    for ours, theirs in zip(rows(two, "metrics.jsonl"), rows(one, "metrics.jsonl"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(("job", "most"), [("8bit", 2e-3), ("4bit", 1e-4)])
def test_two_ranks_differ_by_rounding_where_numbers_have_few_bits(runs, job, most):
    """Moments in 8 bits are rounded in blocks that follow the shards: within two steps' length of the rate 1e-3."""
    theirs, ours = (weights(runs(layout) / job) for layout in LAYOUTS)
    assert max(float((ours[name] - tensor).abs().max()) for name, tensor in theirs.items()) < most


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("job", JOBS)
def test_it_is_resumed_to_the_byte(runs, layout, job):
    ours, theirs = runs(layout) / f"{job}-resumed", runs(layout) / job
    file = FILES.get(job, "model.safetensors")
    for place in ("final", "checkpoint-4"):
        assert (ours / place / file).read_bytes() == (theirs / place / file).read_bytes()
    for file in (theirs / "checkpoint-4" / "trainer").glob("*.safetensors"):
        assert (ours / "checkpoint-4" / "trainer" / file.name).read_bytes() == file.read_bytes(), file.name
    assert rows(ours, "metrics.jsonl") == rows(theirs, "metrics.jsonl")[2:]
