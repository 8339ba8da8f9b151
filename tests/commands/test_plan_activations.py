"""The planner's activations, caches and micro-batches, against a real forward and the cuts of training."""

from __future__ import annotations

import pytest
import torch

from grpokit.batch.plan import plan_step
from grpokit.commands.cli import main
from grpokit.config.options import PlanConfig
from grpokit.losses import make_loss
from grpokit.policy.architecture import backbone, layers
from grpokit.policy.policy import Policy
from grpokit.training.plan.batch import batch_of
from grpokit.training.plan.footprint import activations_of
from helpers.plans import SMALL, build, write_config
from helpers.running import micro_batches
from helpers.tiny import group_of

# --------------------------------------------------------------------------- activations


class Kept:
    """An own count of what autograd saves: storages that are no parameters', each once."""

    def __init__(self, model):
        self.skip = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.storages = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.skip:
            self.storages[storage.data_ptr()] = storage  # held, so that its address is no other's
        return tensor

    @property
    def bytes(self):
        return sum(storage.nbytes() for storage in self.storages.values())


def saved_by(model, rows, length, dtype):
    policy = Policy(model, 1.0, dtype, dtype)
    kept = Kept(policy)
    ids = torch.randint(SMALL["vocab_size"], (rows, length))
    with policy.computing(), torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t):
        output = backbone(model)(input_ids=ids, use_cache=False)
    del output
    return kept.bytes


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_activations_are_those_of_a_real_forward(kind, attention, dtype):
    config, rows, length = {"model_type": kind, **SMALL}, 3, 40
    master = torch.float64 if dtype == torch.float64 else torch.float32
    model = build(config, attn_implementation=attention).to(master)
    real = saved_by(model, rows, length, dtype)
    if dtype != master:  # autocast's copies of the weights, which are no activations
        real -= sum(p.nbytes // 2 for layer in layers(model) for p in layer.parameters() if p.ndim == 2)
    with torch.device("meta"):
        shapes = build(config, attn_implementation=attention)
    found = activations_of(shapes, rows, length, dtype, master)
    assert not found.failure
    assert found.kept(recomputed=False) == pytest.approx(real, rel=0.05)
    assert found.scaled(2 * rows, length).kept(False) == pytest.approx(2 * found.kept(False), rel=0.01)


def test_activations_under_gradient_checkpointing():
    """A real checkpointed forward keeps what enters the layers; the one that is computed again comes on top."""
    model = build({"model_type": "qwen3", **SMALL})
    with torch.device("meta"):
        shapes = build({"model_type": "qwen3", **SMALL})
    found = activations_of(shapes, 3, 40, torch.float32, torch.float32)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert saved_by(model, 3, 40, torch.float32) == pytest.approx(found.root + found.inputs, rel=0.05)
    kept = found.kept(recomputed=True)
    assert kept == found.root + found.inputs + max(found.layers) < found.kept(recomputed=False)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_of_a_token(kind, dtype):
    model = build({"model_type": kind, **SMALL})
    with torch.device("meta"):
        shapes = build({"model_type": kind, **SMALL})
    with torch.inference_mode(), Policy(model, 1.0, dtype, dtype).computing():
        cache = model(torch.zeros(2, 24, dtype=torch.int64), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / (2 * 24)
    assert activations_of(shapes, 1, 8, dtype, torch.float32).cache == real


def test_an_architecture_that_looks_at_values_gets_a_formula_and_says_so(tmp_path, capsys):
    routed = {"model_type": "mixtral", **SMALL, "num_local_experts": 4, "dtype": "float32"}
    model = write_config(tmp_path, routed)
    assert main(["plan", "--model", str(model), "--max_completion_length", "8", "--prompt_tokens", "8"]) == 0
    assert "from a formula" in " ".join(capsys.readouterr().out.split())


# --------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("ranks", [1, 3, 4])
@pytest.mark.parametrize("budget", [10, 40, 50, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_micro_batches_are_counted_as_they_are_cut(ranks, budget, packed):
    config = PlanConfig(
        ranks=ranks, prompts_per_step=6, num_generations=4, updates_per_step=2, micro_batch_tokens=budget
    )
    groups = [group_of([1.0, 0.0, 0.0, 1.0], [14] * 4, position) for position in range(6)]
    for group in groups:
        object.__setattr__(group, "advantages", group.reward)
    update = plan_step(groups, make_loss("dapo"), config.updates_per_step, ranks)[0]
    parts = [micro_batches(update.samples, budget, packed=packed, rank=r, ranks=ranks) for r in range(ranks)]
    planned = batch_of(config, 16)
    assert {len(part) for part in parts} == {planned.micro_batches}
    rows = [sum(len(micro.samples) for micro in part) for part in parts]
    assert max(rows) == planned.rows
    full = max(rows) * 16 / (planned.micro_batches * budget)
    assert planned.fill(budget) == pytest.approx(full)
