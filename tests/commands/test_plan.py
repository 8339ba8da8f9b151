"""`grpokit plan`: real models' sizes, remedies, and the mistakes that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from grpokit.commands.cli import main, parse
from grpokit.commands.plan import remedies
from grpokit.config.options import PlanConfig
from grpokit.policy.load import skeleton
from grpokit.policy.optimizer import make_optimizer
from grpokit.policy.policy import Policy
from grpokit.training.plan.estimate import ALWAYS, again, make_plan
from grpokit.training.plan.footprint import sizes_of
from helpers.places import ROOT
from helpers.plans import LLAMA, QWEN, SMALL, build, plan_of, write_config

# --------------------------------------------------------------------------- real sizes, and the command line


@pytest.mark.parametrize(("config", "billions"), [(QWEN, 7.616), (LLAMA, 8.030)], ids=["qwen", "llama"])
def test_a_real_config_gives_the_known_parameters_without_their_memory(tmp_path, config, billions):
    """7.616 and 8.030 billion: what the model cards say. In a process of its own, whose memory is measured."""
    model = write_config(tmp_path / "model", config)
    code = (
        "import resource, sys\n"
        "from grpokit.commands.cli import main\n"
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


def test_teachers_are_held_and_gathered_as_a_reference_is(tmp_path, capsys):
    """One from a directory; a server takes nothing here."""
    model, teacher = (
        write_config(tmp_path / name, {"model_type": "qwen3", **SMALL, "num_hidden_layers": layers})
        for name, layers in (("model", 3), ("teacher", 5))
    )
    config = PlanConfig(model=str(model), teacher=(str(teacher),), ranks=2, max_completion_length=16)
    skeletons = [skeleton(str(path), "--model", None) for path in (model, teacher)]
    plan = make_plan(config, skeletons[0], None, skeletons[1:])
    sizes = sizes_of(skeletons[1])
    held = {part.name: part.bytes for part in plan.memory if part.phase == ALWAYS}
    assert held["teachers"] == sizes.shard(2) * 4
    alike = make_plan(replace(config, teacher=(), beta=0.1), skeletons[0], skeletons[1])
    received = plan.traffic["gather the teachers' weights"]
    assert received == alike.traffic["gather the reference's weights"] > 0
    assert (
        main(["plan", "--model", str(model), "--teacher", str(teacher), "--max_completion_length", "16"]) == 0
    )
    assert "teachers" in capsys.readouterr().out
    server = ["a=http://127.0.0.1:9", f"b={teacher}"]
    assert main(["plan", "--model", str(model), "--teacher", *server, "--max_completion_length", "16"]) == 0


def test_tied_weights_count_once(tmp_path):
    tied, untied = ({"model_type": "qwen3", **SMALL, "tie_word_embeddings": t} for t in (True, False))
    with torch.device("meta"):
        sizes = [sizes_of(build(config)).numel for config in (tied, untied)]
    assert sizes[1] - sizes[0] == SMALL["vocab_size"] * SMALL["hidden_size"]


@pytest.mark.parametrize("optim", ["adamw", "muon", "adamw_8bit"])
def test_the_optimizers_state_is_what_it_holds_after_a_step(tmp_path, optim):
    sizes = SMALL | {"hidden_size": 64, "intermediate_size": 80, "vocab_size": 100}
    model = write_config(tmp_path, {"model_type": "qwen3", **sizes})
    plan = plan_of(model, optim=optim, dtype="float32", max_completion_length=8, prompt_tokens=8)
    [planned] = [part.bytes for part in plan.memory if "moment" in part.name and part.phase == ALWAYS]
    policy = Policy(build({"model_type": "qwen3", **sizes}), 1.0, torch.float32, torch.float32)
    optimizer = make_optimizer(policy, plan.config)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    # AdamW's count of steps is a tensor too, and a last block may not be full.
    assert planned == pytest.approx(sum(value.nbytes for value in held if value.ndim), rel=0.002)


def test_weights_in_4_bits_are_whole_on_every_rank_and_frozen_ones_have_no_gradient(tmp_path):
    model = write_config(tmp_path, {"model_type": "qwen3", **SMALL})
    flags = {"max_completion_length": 8, "prompt_tokens": 8, "dtype": "float32"}
    adapter = flags | {"lora_r": 2, "lora_save": "adapter", "load_in_4bit": True}
    packed = [
        part.bytes
        for ranks in (1, 4)
        for part in plan_of(model, ranks=ranks, **adapter).memory
        if "4 bits" in part.name
    ]
    layer = 36 * 36 + 2 * 12 * 36 + 36 * 36 + 3 * 36 * 50  # q, k and v, o, and the MLP
    assert packed == pytest.approx([0.516 * 3 * layer] * 2, rel=1e-3)
    frozen = plan_of(model, freeze_parameters=(".*",), trainable_parameters=("lm_head",), **flags)
    parts = {part.name: part.bytes for part in frozen.memory}
    assert (parts["gradients"], parts["AdamW's two moments"]) == (4 * 22 * 36, 8 * 22 * 36)
    assert parts["parameters"] == 4 * frozen.sizes.numel


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
