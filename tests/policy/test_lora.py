"""LoRA: what is trained, what the reference is, what is saved, and that it comes back to the byte."""

from __future__ import annotations

import builtins
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grpokit.batch.collate import collate
from grpokit.commands.cli import main
from grpokit.config.options import EvalConfig
from grpokit.config.yaml import to_yaml
from grpokit.losses import make_loss
from grpokit.policy.export import SaveFormat, engine_format, save_model, stream
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.policy.lora import Lora, adapted_layers, merge_adapter
from grpokit.policy.policy import Float64Throughout
from grpokit.policy.reference import AdapterOff
from grpokit.training.evaluate_model import evaluate_model
from grpokit.types import Sample
from helpers.launch import rows
from helpers.running import start, train
from helpers.stops import STOPPED, in_update, stop_when
from helpers.tiny import make_model_dir, tiny_config

CPU = torch.device("cpu")
SCALE = 8.0 / 4


def lora_for(directory: Path, *targets: str) -> Lora:
    return Lora(r=4, alpha=8.0, target_modules=targets or ("all-linear",), base=str(directory), seed=1)


def policy_of(directory: Path, *targets: str, dtype: str = "float64"):
    lora = lora_for(directory, *targets)
    return load_policy(str(directory), dtype=dtype, temperature=0.8, device=CPU, lora=lora)


@torch.no_grad()
def move(policy) -> None:
    """B is 0 at first, so that the adapter does nothing: give it something to do."""
    torch.manual_seed(5)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.3 * torch.randn_like(parameter))


def some_rows() -> list[Sample]:
    found = []
    for index in range(4):
        ids = (torch.arange(3 + index) * 5 + index) % 16
        ones, zeros = torch.ones(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.float64)
        found.append(Sample(index, index // 2, (1, 2, 3), ids, ones, (-1.0) ** index, 0.1, len(ids), zeros))
    return found


def gradients(policy) -> dict[str, torch.Tensor]:
    loss = make_loss("dapo")
    _, output = policy(collate(some_rows(), "padded", CPU), loss)
    output.loss.backward()
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    with Float64Throughout():
        return model(input_ids=torch.arange(6)[None]).logits


def test_at_first_it_is_the_model_and_only_the_adapter_is_trained(tmp_path):
    directory = make_model_dir(tmp_path / "model", layers=2)
    plain = load_policy(str(directory), dtype="float64", temperature=0.8, device=CPU)
    policy = policy_of(directory)
    micro = collate(some_rows(), "padded", CPU)
    assert torch.equal(policy(micro)[0].logps, plain(micro)[0].logps)
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(adapted_layers(policy.model)) == 2 * 2 * 7
    assert all("lora_A.default" in name or "lora_B.default" in name for name in trained)
    assert not any("lora" in name for name, _ in plain.model.named_parameters())


def test_the_seed_draws_the_adapter_and_disturbs_no_other_draw(tmp_path):
    directory = make_model_dir(tmp_path / "model")
    found = []
    for state, seed in ((3, 1), (4, 1), (4, 2)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        lora = replace(lora_for(directory), seed=seed)
        policy = load_policy(str(directory), dtype="float64", temperature=0.8, device=CPU, lora=lora)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(dict(policy.named_parameters()))
    one, same, other = found
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


@pytest.mark.parametrize("form", ["padded", "packed", "shared"])
def test_its_gradient_is_the_whole_models_through_the_product(tmp_path, form):
    """By the chain rule, of W + s·B·A: dL/dA = s·Bᵀ·dL/dW and dL/dB = s·dL/dW·Aᵀ, with dL/dW of the merged model."""
    directory = make_model_dir(tmp_path / "model", layers=2)
    policy = policy_of(directory)
    move(policy)
    save_model(tmp_path / "merged", policy, load_tokenizer(str(directory)), SaveFormat())
    whole = load_policy(str(tmp_path / "merged"), dtype="float64", temperature=0.8, device=CPU)
    micro = collate(some_rows(), form, CPU)
    torch.testing.assert_close(policy(micro)[0].logps, whole(micro)[0].logps, rtol=0, atol=1e-12)
    ours, theirs = gradients(policy), gradients(whole)
    parameters = dict(policy.model.named_parameters())
    assert len(ours) == 2 * 14
    for place in adapted_layers(policy.model):
        a, b = (f"{place}.lora_{half}.default.weight" for half in "AB")
        of_w = theirs[f"{place}.weight"]
        torch.testing.assert_close(ours[a], SCALE * parameters[b].T @ of_w, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(ours[b], SCALE * of_w @ parameters[a].T, rtol=1e-9, atol=1e-13)


def test_switched_off_it_is_the_first_model_again(tmp_path):
    directory = make_model_dir(tmp_path / "model")
    policy = policy_of(directory)
    micro = collate(some_rows(), "padded", CPU)
    first = policy(micro)[0].logps
    move(policy)
    moved = policy(micro)[0].logps
    assert not torch.allclose(moved, first)
    assert torch.equal(AdapterOff(policy)(micro)[0].logps, first)
    assert torch.equal(policy(micro)[0].logps, moved)
    assert all(p.requires_grad for name, p in policy.named_parameters() if "lora_" in name)


def test_the_reference_costs_nothing_and_is_the_same(tmp_path):
    """A KL penalty to the policy without its adapter, against one to the first model loaded once more."""
    settings = {"lora_r": 4, "beta": 0.3, "learning_rate": 1e-2}
    for name, ref_model in (("off", ""), ("loaded", str(tmp_path / "model"))):
        config = tiny_config(tmp_path, **settings, ref_model=ref_model, output_dir=str(tmp_path / name))
        run = start(config)
        assert isinstance(run.reference, AdapterOff) == (ref_model == "")
        train(run)
        run.close()
    ours, theirs = (rows(tmp_path / name, "metrics.jsonl") for name in ("off", "loaded"))
    assert ours == theirs
    assert ours[-1]["kl"] > 1e-4


@pytest.mark.parametrize("lora_save", ["merged", "adapter"])
def test_what_is_saved_is_what_was_trained(tmp_path, lora_save):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = tiny_config(tmp_path, lora_r=4, lora_save=lora_save, learning_rate=1e-2, save_steps=3)
    run = start(config)
    train(run)
    run.close()
    want = logits(run.policy.model)
    for name in ("final", "checkpoint-3"):
        directory = tmp_path / "run" / name
        # Its rotary angles are rounded to float32, and an adapter is added to its model in that type.
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
        torch.testing.assert_close(logits(model), want, rtol=0, atol=1e-5)
        again = load_policy(str(directory), dtype="float64", temperature=1.0, device=CPU)
        exact = 1e-12 if lora_save == "merged" else 1e-5
        torch.testing.assert_close(logits(again.model), want, rtol=0, atol=exact)
    names = {path.name for path in (tmp_path / "run" / "final").iterdir()}
    assert "tokenizer.json" in names
    if lora_save == "merged":
        assert "model.safetensors" in names
        kept = load_file(tmp_path / "run" / "final" / "model.safetensors")
        assert kept.keys() == load_file(tmp_path / "model" / "model.safetensors").keys()
        return
    assert names >= {"adapter_model.safetensors", "adapter_config.json"}
    assert "model.safetensors" not in names
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    beside = PeftModel.from_pretrained(base, tmp_path / "run" / "final")
    torch.testing.assert_close(logits(beside), want, rtol=0, atol=1e-5)
    described = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str((tmp_path / "model").resolve())
    assert (described["r"], described["lora_alpha"]) == (4, 32.0)


def test_an_adapter_of_a_run_evaluates_as_its_merged_model(tmp_path):
    found = {}
    for lora_save in ("merged", "adapter"):
        output = str(tmp_path / lora_save)
        config = tiny_config(
            tmp_path, lora_r=4, lora_save=lora_save, learning_rate=1e-2, output_dir=output, dtype="float32"
        )
        run = start(config)
        train(run)
        run.close()
        evaluated = EvalConfig(
            model=f"{output}/final", dataset=config.dataset, reward_funcs=config.reward_funcs, dtype="float32"
        )
        found[lora_save] = evaluate_model(replace(evaluated, max_completion_length=6, num_generations=4))
    assert found["merged"] == pytest.approx(found["adapter"])


@pytest.mark.parametrize("lora_save", ["merged", "adapter"])
@pytest.mark.parametrize(("dtype", "save_dtype"), [("float32", None), ("bfloat16", "bfloat16")])
def test_it_is_resumed_to_the_byte_from_the_midst_of_a_step(
    tmp_path, monkeypatch, lora_save, dtype, save_dtype
):
    types = {"dtype": dtype, "save_dtype": save_dtype}
    config = tiny_config(tmp_path, lora_r=4, lora_save=lora_save, updates_per_step=2, beta=0.1, **types)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = ["train", "--config", str(tmp_path / "run.yaml"), "--output_dir"]
    assert main([*command, str(tmp_path / "expected")]) == 0
    stop_when(monkeypatch, in_update(3, step=1))
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    monkeypatch.undo()
    assert main([*command, str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]) == 0
    file = "model.safetensors" if lora_save == "merged" else "adapter_model.safetensors"
    ours, theirs = ((tmp_path / name / "final" / file).read_bytes() for name in ("run", "expected"))
    assert ours == theirs
    assert rows(tmp_path / "run", "metrics.jsonl") == rows(tmp_path / "expected", "metrics.jsonl")


@pytest.mark.filterwarnings("ignore")  # the compiler has many of its own
@pytest.mark.parametrize("change", ["gradient_checkpointing", "compile"])
def test_options_that_save_memory_change_nothing(tmp_path, change):
    settings = {"lora_r": 4, "learning_rate": 1e-2, "dtype": "float32", "max_steps": 2}
    plain = tiny_config(tmp_path, **settings, output_dir=str(tmp_path / "plain"))
    other = tiny_config(tmp_path, **settings, output_dir=str(tmp_path / "other"), **{change: True})
    for config in (plain, other):
        run = start(config)
        train(run)
        run.close()
    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("other", "plain"))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)


def test_tied_embeddings_stay_tied(tmp_path):
    directory = make_model_dir(tmp_path / "model", tied=True)
    policy = policy_of(directory)
    move(policy)
    save_model(tmp_path / "merged", policy, load_tokenizer(str(directory)), SaveFormat())
    kept = load_file(tmp_path / "merged" / "model.safetensors")
    assert kept.keys() == load_file(directory / "model.safetensors").keys()
    assert "lm_head.weight" not in kept


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("nowhere",), "cannot be put into Qwen3ForCausalLM: expected all-linear, or some of down_proj, "),
        (("lm_head",), "lm_head is an embedding, the head, or no plain"),
        (("embed_tokens",), "embed_tokens is an embedding, the head, or no plain"),
        (("q_proj", "lm_head"), "lm_head is an embedding, the head, or no plain"),
        (("q_proj", "v_porj"), "has no module v_porj; there are down_proj, "),
    ],
)
def test_modules_that_cannot_have_an_adapter_are_refused(tmp_path, targets, message):
    directory = make_model_dir(tmp_path / "model")
    with pytest.raises(ValueError, match=f"--lora_target_modules {' '.join(targets)}: .*{message}"):
        policy_of(directory, *targets)


def test_layers_that_keep_their_weights_the_other_way_round(tmp_path):
    """GPT-2's, whose weight is [in, out]."""
    from transformers import AutoModelForCausalLM, GPT2Config

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 16}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, eos_token_id=1)).save_pretrained(tmp_path / "model")
    load_tokenizer(str(make_model_dir(tmp_path / "other"))).save_pretrained(tmp_path / "model")
    policy = policy_of(tmp_path / "model")
    move(policy)
    save_model(tmp_path / "merged", policy, load_tokenizer(str(tmp_path / "model")), SaveFormat("float64"))
    whole = load_policy(str(tmp_path / "merged"), dtype="float64", temperature=0.8, device=CPU)
    micro = collate(some_rows(), "padded", CPU)
    torch.testing.assert_close(policy(micro)[0].logps, whole(micro)[0].logps, rtol=0, atol=1e-12)


def test_it_is_added_to_narrow_weights_in_float32(tmp_path):
    """In bfloat16 the sum would lose what the adapter has learned: W in bf16, W + s·B·A in float32."""
    directory = make_model_dir(tmp_path / "model")
    policy = policy_of(directory, dtype="bfloat16")
    move(policy)
    found = dict(merge_adapter(policy.model.state_dict(), policy.model, lambda tensor: tensor))
    for place, layer in adapted_layers(policy.model).items():
        a, b = (getattr(layer, f"lora_{half}").default.weight for half in "AB")
        assert layer.base_layer.weight.dtype == torch.bfloat16
        want = layer.base_layer.weight.double() + SCALE * b.double() @ a.double()
        torch.testing.assert_close(found[f"{place}.weight"].double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_another_engine_gets_what_a_directory_would_have(tmp_path, lora, tied):
    """In the compute type, not in the one that was stored: bfloat16 here."""
    directory = make_model_dir(tmp_path / "model", tied=tied)
    narrow = load_policy(str(directory), dtype="float32", temperature=1.0, device=CPU)
    tokenizer = load_tokenizer(str(directory))
    save_model(tmp_path / "narrow", narrow, tokenizer, SaveFormat("bfloat16"))
    options = {"lora": lora_for(directory)} if lora else {}
    policy = load_policy(str(tmp_path / "narrow"), dtype="float32", temperature=1.0, device=CPU, **options)
    assert policy.stored_dtype == torch.bfloat16
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-4)
    sent = dict(stream(policy))
    announced = {name: (t.shape, t.dtype) for name, t in stream(policy, shapes_only=True)}
    assert announced == {name: (t.shape, t.dtype) for name, t in sent.items()}
    save_model(tmp_path / "files", policy, tokenizer, engine_format(policy))
    files = load_file(tmp_path / "files" / "model.safetensors")
    assert sent.keys() == files.keys()
    for name, weight in files.items():
        assert weight.dtype == torch.float32
        assert torch.equal(sent[name], weight)


def test_an_adapter_beside_an_adapter(tmp_path):
    from grpokit.config.checks import check_train_config

    directory = make_model_dir(tmp_path / "model")
    policy = policy_of(directory)
    save_model(tmp_path / "adapter", policy, load_tokenizer(str(directory)), SaveFormat(only_adapter=True))
    config = tiny_config(tmp_path, model=str(tmp_path / "adapter"), lora_r=4)
    check_train_config(config)
    with pytest.raises(ValueError, match=r"adapter: is itself an adapter, .*use --lora_save merged"):
        check_train_config(replace(config, lora_save="adapter"))


def test_an_adapter_on_some_modules_trains_those_alone(tmp_path):
    policy = policy_of(make_model_dir(tmp_path / "model"), "q_proj", "v_proj")
    assert {name.rpartition(".")[2] for name in adapted_layers(policy.model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": -1}, "--lora_r -1: must be 0"),
        ({"lora_r": 4, "lora_alpha": 0.0}, "--lora_alpha 0.0: must be above 0"),
        ({"lora_save": "adapter"}, "--lora_save adapter: is for an adapter; add --lora_r"),
        ({"lora_r": 4, "lora_target_modules": ("all-linear", "q_proj")}, "all-linear cannot be combined"),
        ({"lora_r": 4, "lora_target_modules": ()}, "name some modules"),
    ],
)
def test_flags_that_cannot_work_are_refused(tmp_path, changes, message):
    from grpokit.config.checks import check_train_config

    with pytest.raises(ValueError, match=message):
        check_train_config(tiny_config(tmp_path, **changes))


def test_without_peft_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def merge_adapter(name, *args, **kwargs):
        if name.partition(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *args, **kwargs)

    directory = make_model_dir(tmp_path / "model")
    monkeypatch.setattr(builtins, "__import__", merge_adapter)
    with pytest.raises(ValueError, match=r"--lora_r: needs peft.*pip install grpokit\[peft\]"):
        policy_of(directory)


def test_an_adapter_whose_model_is_gone_is_refused(tmp_path):
    directory = make_model_dir(tmp_path / "model")
    policy = policy_of(directory)
    save_model(tmp_path / "adapter", policy, load_tokenizer(str(directory)), SaveFormat(only_adapter=True))
    shutil.rmtree(directory)
    with pytest.raises(
        ValueError, match=r"adapter: is an adapter of .*model, which is no directory with a config"
    ):
        load_policy(str(tmp_path / "adapter"), dtype="float32", temperature=1.0, device=CPU)


def test_beside_weights_of_4_bits(tmp_path, monkeypatch):
    """QLoRA: a run and its resume, the reference without the adapter, and what is saved."""
    make_model_dir(tmp_path / "model", hidden=64)  # blocks of 64 numbers are quantized
    config = tiny_config(
        tmp_path,
        lora_r=4,
        lora_save="adapter",
        load_in_4bit=True,
        dtype="float32",
        beta=0.1,
        learning_rate=1e-2,
        updates_per_step=2,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = ["train", "--config", str(tmp_path / "run.yaml"), "--output_dir"]
    assert main([*command, str(tmp_path / "expected")]) == 0
    stop_when(monkeypatch, in_update(3, step=1))
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    monkeypatch.undo()
    assert main([*command, str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]) == 0
    ours, theirs = (
        (tmp_path / n / "final" / "adapter_model.safetensors").read_bytes() for n in ("run", "expected")
    )
    assert ours == theirs
    found = rows(tmp_path / "run", "metrics.jsonl")
    assert found == rows(tmp_path / "expected", "metrics.jsonl")
    assert found[-1]["kl"] > 0
    run = start(replace(config, output_dir=str(tmp_path / "again")))
    kept = {type(layer.base_layer).__name__ for layer in adapted_layers(run.policy.model).values()}
    run.close()
    assert kept == {"Linear4bit"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 0, "lora_save": "merged"}, "cannot be trained; add --lora_r"),
        ({"lora_save": "merged"}, "add --lora_save adapter"),
        ({"dtype": "float64"}, "not with --dtype float64"),
        ({"sampler": "vllm"}, "add --vllm_sync adapter"),
    ],
)
def test_weights_of_4_bits_that_cannot_be_are_refused(tmp_path, changes, message):
    from grpokit.config.checks import check_train_config

    settings = {"lora_r": 4, "lora_save": "adapter", "load_in_4bit": True, "dtype": "float32"}
    with pytest.raises(ValueError, match=f"--load_in_4bit: .*{message}"):
        check_train_config(tiny_config(tmp_path, **(settings | changes)))


def test_all_weights_are_trained_on_from_an_adapter(tmp_path):
    """It is added to its model's weights, which are then those of any model."""
    directory = make_model_dir(tmp_path / "model")
    policy = policy_of(directory)
    move(policy)
    save_model(tmp_path / "adapter", policy, load_tokenizer(str(directory)), SaveFormat(only_adapter=True))
    run = start(tiny_config(tmp_path, model=str(tmp_path / "adapter"), dtype="float32", learning_rate=1e-2))
    assert all(parameter.requires_grad for parameter in run.policy.parameters())
    train(run)
    run.close()
    assert (
        load_file(tmp_path / "run" / "final" / "model.safetensors").keys()
        == load_file(directory / "model.safetensors").keys()
    )
