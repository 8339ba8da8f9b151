"""The planner against measurements: what ranks really hold and send, and what a real forward really keeps."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from grpokit.architecture import backbone, layers
from grpokit.batching import micro_batches, plan_step
from grpokit.cli import main, parse
from grpokit.config import PlanConfig
from grpokit.flat import groups_to_tensors
from grpokit.footprint import activations_of, sizes_of
from grpokit.losses import make_loss
from grpokit.model import Policy
from grpokit.plan import ALWAYS, ROLLOUT_BYTES, again, batch_of, make_plan
from grpokit.plan_tables import remedies
from grpokit.pretrained import skeleton
from helpers import forked
from helpers.places import ROOT
from helpers.plan_ranks import BASE, CASES
from helpers.tiny import group_of

# The config.json that the models' authors publish.
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SMALL = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "vocab_size": 22,
    "max_position_embeddings": 64,
}


def write_config(path: Path, config: dict) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def plan_of(model: Path, **flags):
    config = PlanConfig(model=str(model), **flags)
    return make_plan(config, skeleton(config.model, "--model", config.attn_implementation))


def build(config: dict, **options):
    """The real model of a config.json, with weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), **options)


# --------------------------------------------------------------------------- ranks


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
    parts = [micro_batches(update.rows, budget, packed=packed, rank=r, ranks=ranks) for r in range(ranks)]
    planned = batch_of(config, 16)
    assert {len(part) for part in parts} == {planned.micro_batches}
    rows = [sum(len(micro.rows) for micro in part) for part in parts]
    assert max(rows) == planned.rows
    full = max(rows) * 16 / (planned.micro_batches * budget)
    assert planned.fill(budget) == pytest.approx(full)


# --------------------------------------------------------------------------- real sizes, and the command line


@pytest.mark.parametrize(("config", "billions"), [(QWEN, 7.616), (LLAMA, 8.030)], ids=["qwen", "llama"])
def test_a_real_config_gives_the_known_parameters_without_their_memory(tmp_path, config, billions):
    """7.616 and 8.030 billion: what the model cards say. In a process of its own, whose memory is measured."""
    model = write_config(tmp_path / "model", config)
    code = (
        "import resource, sys\n"
        "from grpokit.cli import main\n"
        f"assert main(['plan', '--model', {str(model)!r}, '--ranks', '8', '--device_memory', '80']) == 0\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert float(lines[-1].split()[1]) < 2 * 2**30
    assert max(len(line) for line in lines if not line.startswith(str(model))) <= 80
    with torch.device("meta"):
        sizes = sizes_of(build(config))
    assert sizes.numel == pytest.approx(billions * 1e9, rel=0.01)
    assert f"{sizes.numel / 1e9:.2f} billion" in done.stdout
    assert len(sizes.layers) == config["num_hidden_layers"]
    assert sizes.root.numel == (2 * config["vocab_size"] + 1) * config["hidden_size"]


def test_tied_weights_count_once(tmp_path):
    tied, untied = ({"model_type": "qwen3", **SMALL, "tie_word_embeddings": t} for t in (True, False))
    with torch.device("meta"):
        sizes = [sizes_of(build(config)).numel for config in (tied, untied)]
    assert sizes[1] - sizes[0] == SMALL["vocab_size"] * SMALL["hidden_size"]


def test_more_ranks_less_memory_and_replicas_more(tmp_path):
    model = write_config(tmp_path, {"model_type": "qwen3", **SMALL})
    flags = {"max_completion_length": 8, "prompt_tokens": 8}
    state = {
        (ranks, inside): plan_of(model, ranks=ranks, shard_size=inside, **flags).phase(ALWAYS)
        for ranks, inside in [(1, 0), (2, 0), (8, 0), (8, 2)]
    }
    assert state[8, 0] < state[2, 0] == state[8, 2] < state[1, 0]
    one = plan_of(model, **flags)
    copies = [part.bytes for part in one.memory if part.name.startswith("autocast's copies")]
    assert copies == [2 * sum(group.numel for group in one.sizes.layers)]
    assert sum(one.traffic.values()) == 0
    assert one.phase(ALWAYS) == 16 * one.sizes.numel


def test_what_would_make_it_fit(tmp_path):
    """The flags that are named do make it fit, as a plan made anew finds; where nothing does, that is said."""
    model = write_config(tmp_path, QWEN)
    flags = {"ranks": 8, "max_completion_length": 1024, "prompts_per_step": 64, "device_memory": 80.0}
    plan = plan_of(model, **flags)
    assert plan.peak > plan.room
    assert remedies(plan) == ["--gradient_checkpointing"]
    mended = plan_of(model, **flags, gradient_checkpointing=True)
    assert mended.peak < mended.room
    assert mended.peak == pytest.approx(again(plan, gradient_checkpointing=True).peak)
    few = plan_of(model, **(flags | {"ranks": 1}))
    assert any(flag.startswith("--ranks") for flag in remedies(few))
    assert remedies(plan_of(model, **(flags | {"device_memory": 4.0}))) is None


def test_a_recipe_can_be_planned(capsys):
    recipe = ROOT / "recipes" / "gsm8k.yaml"
    config = parse(["plan", "--config", str(recipe), "--ranks", "4", "--model", "elsewhere"])
    assert isinstance(config, PlanConfig)
    assert (config.ranks, config.max_completion_length, config.model) == (4, 512, "elsewhere")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", ""], ["--model (missing)"]),
        (["--model", "nowhere"], ["--model nowhere", "no such"]),
        (["--ranks", "0"], ["--ranks 0", "at least 1"]),
        (["--ranks", "4", "--shard_size", "3"], ["--shard_size 3", "--ranks 4"]),
        (["--prompt_tokens", "0"], ["--prompt_tokens 0", "at least 1"]),
        (["--completion_tokens", "9"], ["--completion_tokens 9", "--max_completion_length 8"]),
        (["--completion_tokens", "0"], ["--completion_tokens 0", "between 1"]),
        (["--prompt_tokens", "60"], ["68 tokens", "context is 64", "lower"]),
        (["--device_memory", "-1"], ["--device_memory -1", "GiB"]),
        (["--micro_batch_tokens", "0"], ["--micro_batch_tokens 0"]),
        (["--updates_per_step", "3"], ["--updates_per_step 3"]),
        (["--loss_type", "grop"], ["loss_type 'grop'", "grpo"]),
        (["--ref_model", "nowhere"], ["--ref_model nowhere"]),
    ],
    ids=lambda x: " ".join(x)[:40],
)
def test_mistakes_in_plan_are_named(tmp_path, capsys, flags, words):
    model = write_config(tmp_path, {"model_type": "qwen3", **SMALL})
    sizes = ("--max_completion_length", "8", "--prompt_tokens", "8")
    assert main(["plan", "--model", str(model), *sizes, *flags]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error.splitlines()[0], error


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"model_type": "t5"}',
        '{"model_type": "nonsense"}',
        '{"model_type": "qwen3", "hidden_size": "x"}',
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert f"--model {tmp_path}: its config.json does not describe" in capsys.readouterr().err


def test_code_that_comes_with_a_model_is_not_run(tmp_path, capsys):
    mark = tmp_path / "was_run"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    write_config(tmp_path, {"model_type": "evil", "auto_map": names})
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert not mark.exists()
