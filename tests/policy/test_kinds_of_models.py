"""Kinds of models that need care: experts, Mamba, other names of the head's scale, softcaps, multimodal directories."""

from __future__ import annotations

import json

import pytest
import torch

from grpokit.policy.architecture import backbone
from grpokit.policy.load import load_policy
from grpokit.policy.lora import Lora, adapted_layers
from helpers.architectures import DEEPSEEK, SIZES, save
from helpers.running import start, train
from helpers.tiny import make_model_dir, tiny_config

CPU = torch.device("cpu")
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA4 = (
    SIZES
    | EXPERTS
    | {"intermediate_size_mlp": 32, "interleave_moe_layer_step": 1, "attention_chunk_size": 64}
)
FALCON_H1 = SIZES | {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "lm_head_multiplier": 0.5,
}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2}


def load(path, dtype="float32", **options):
    return load_policy(str(path), dtype=dtype, temperature=1.0, device=CPU, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Llama4TextConfig", LLAMA4),
        ("Qwen3MoeConfig", SIZES | EXPERTS),
        ("PhimoeConfig", SIZES | EXPERTS),
        ("RecurrentGemmaConfig", SIZES | {"lru_width": 32, "attention_window_size": 64}),
        ("FalconH1Config", FALCON_H1),
    ],
)
def test_it_can_be_loaded_and_trained(tmp_path, name, settings, dtype):
    save(tmp_path / "model", name, settings)
    run = start(tiny_config(tmp_path, dtype=dtype, max_steps=1))
    before = {n: p.detach().clone() for n, p in run.policy.named_parameters()}
    train(run)
    run.close()
    assert any(not torch.equal(p, before[n]) for n, p in run.policy.named_parameters())


@pytest.mark.parametrize(
    ("name", "settings", "without"),
    [
        ("Qwen3MoeConfig", SIZES | EXPERTS, "experts, gate"),
        ("MixtralConfig", SIZES | EXPERTS, "experts, gate"),
        ("PhimoeConfig", SIZES | EXPERTS, "experts, router"),
        ("DeepseekV3Config", DEEPSEEK, "down_proj, experts, gate, gate_proj, up_proj"),
        ("MambaConfig", MAMBA, "dt_proj, mixer, out_proj"),
        ("FalconH1Config", FALCON_H1, "out_proj"),
    ],
)
def test_all_linear_skips_what_cannot_have_an_adapter(tmp_path, caplog, name, settings, without):
    save(tmp_path / "model", name, settings)
    config = tiny_config(tmp_path, lora_r=2, lora_save="adapter", max_steps=1, dtype="float32")
    run = start(config)
    assert f"no adapter is possible on the modules called {without}" in caplog.text
    train(run)
    run.close()
    places = adapted_layers(run.policy.model)
    assert all(bool((layer.lora_B["default"].weight != 0).any()) for layer in places.values())
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = PeftModel.from_pretrained(base, tmp_path / "run" / "final")
    assert len(adapted_layers(loaded)) == len(places)


@pytest.mark.parametrize("falcon", [False, True])
def test_all_linear_of_a_dense_model_is_left_to_peft(tmp_path, falcon):
    model = tmp_path / "model"
    if falcon:  # its linear layers are of a class of their own
        save(model, "FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4})
    else:
        make_model_dir(model)
    policy = load(model, lora=Lora(2, 4.0, ("all-linear",), str(model), 0))
    assert policy.lora.config().target_modules == "all-linear"


def test_gemma_2_keeps_the_softcap_of_its_attention(tmp_path, caplog):
    save(tmp_path / "model", "Gemma2Config", SIZES | {"attn_logit_softcapping": 0.5})
    own = load(tmp_path / "model")
    eager = load(tmp_path / "model", attn_implementation="eager")
    ids = torch.arange(9)[None] % 12
    outputs = [backbone(policy.model)(input_ids=ids).last_hidden_state for policy in (own, eager)]
    assert torch.equal(*outputs)
    assert "attention is eager, because sdpa leaves out its softcap of 0.5" in caplog.text


def test_half_of_a_multimodal_directory_is_refused(tmp_path):
    model = make_model_dir(tmp_path / "model")
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vision_config": {"depth": 2}}))
    loaded = json.loads(file.read_text())
    assert loaded["vision_config"]
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(model)
    if (
        getattr(whole, "vision_config", None) is not None
    ):  # the config of a text model keeps what it doesn't know
        from grpokit.policy.whole import check_whole

        class Text:
            config = type("Config", (), {})()

        with pytest.raises(ValueError, match=r"--model .*: is multimodal \(vision_config\)"):
            check_whole(Text(), str(model), "--model", True)
    else:
        with pytest.raises(ValueError, match=r"--model .*: is multimodal \(vision_config\)"):
            load(model, saves=True)
