"""The planner against measurements: the memory that ranks really hold, and the bytes that they send."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from safetensors.torch import save

from grpokit.rollouts.gather import groups_to_tensors
from grpokit.training.plan.estimate import ALWAYS
from grpokit.training.plan.traffic import ROLLOUT_BYTES
from helpers import forked
from helpers.plan_ranks import BASE, CASES
from helpers.plans import SMALL, build, plan_of
from helpers.tiny import group_of


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """measured(ranks) -> a directory with what ranks found: RANKS-CASE-RANK.json. Its sizes divide by neither 2 nor 4."""
    directory = tmp_path_factory.mktemp("plan")
    build({"model_type": "qwen3", **SMALL}).save_pretrained(directory / "model")

    @functools.cache
    def measure(ranks: int) -> Path:
        done = forked.run("helpers.plan_ranks", directory, ranks=ranks)
        assert done.returncode == 0, done.stderr[-4000:]
        return directory

    return measure


LAYOUTS = [
    pytest.param(ranks, case, marks=[pytest.mark.slow] if ranks == 4 else [])
    for ranks in (2, 4)
    for case in CASES
    if (ranks, case) != (2, "hybrid")
]


@pytest.mark.parametrize(("ranks", "case"), LAYOUTS)
def test_ranks_hold_and_receive_what_is_planned(measured, ranks, case):
    directory = measured(ranks)
    plan = plan_of(directory / "model", ranks=ranks, **(BASE | CASES[case]))
    state = {part.name: part.bytes for part in plan.memory if part.phase == ALWAYS}
    gathers = sum(size for name, size in plan.traffic.items() if name.startswith("gather"))
    shards = plan.config.shard_size or ranks
    layer = (shards - 1) * plan.sizes.layers[0].shard(shards) * plan.types.compute.itemsize
    for rank in range(ranks):
        found = json.loads((directory / f"{ranks}-{case}-{rank}.json").read_text())
        # FSDP2 keeps its shards padded to the size of the first rank's, but an optimizer's are only as large as needed
        assert found["parameters"] == state["parameters"]
        assert found["gradients"] == pytest.approx(state["gradients"], rel=0.1)
        assert found["moments"] == pytest.approx(state["AdamW's two moments"], rel=0.1)
        assert found["reference"] == state.get("reference", 0)
        if rank == 0:
            assert found["gradients"] == state["gradients"]
            assert found["moments"] == state["AdamW's two moments"]
        received = found["received"]
        assert received["scatter"] == plan.traffic["scatter gradients"]
        assert received.get("add up", 0) == plan.traffic["add up gradients of the replicas"]
        # the first backward after other forwards may prefetch one layer that it does not need
        assert received["gather"] - gathers in (0, layer)
        assert received["gather"] == pytest.approx(gathers, rel=0.05)


def test_a_plan_of_other_ranks_would_be_found_out(measured):
    right, wrong = (plan_of(measured(2) / "model", ranks=ranks, **BASE) for ranks in (2, 4))
    assert abs(right.traffic["scatter gradients"] / wrong.traffic["scatter gradients"] - 1) > 0.05
    assert abs(right.phase(ALWAYS) / wrong.phase(ALWAYS) - 1) > 0.5


def test_rollouts_take_the_planned_bytes():
    """Against what is really sent, without the texts, whose letters a plan can only guess."""
    groups = [group_of([1.0, 0.0] * 4, [128] * 8, position) for position in range(8)]
    tokens = sum(len(r.completion_ids) for group in groups for r in group.rollouts)
    sent = groups_to_tensors(groups)
    texts = sent["text"].nbytes + 4 * tokens - len(sent["text"])
    assert len(save(sent)) + texts == pytest.approx(ROLLOUT_BYTES * tokens, rel=0.05)
