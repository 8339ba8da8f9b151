"""A model that is not whole is refused, and one that is keeps every tensor as its directory has it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.policy.lora import Lora
from helpers.architectures import DEEPSEEK, SIZES, save
from helpers.running import start, train
from helpers.tiny import make_model_dir, tiny_config

CPU = torch.device("cpu")


def load(path, dtype="float32", **options):
    return load_policy(str(path), dtype=dtype, temperature=1.0, device=CPU, **options)


def rewrite(path, change) -> None:
    """Changes the tensors of a model's or an adapter's file."""
    file = next(path.glob("*.safetensors"))
    save_file(
        {k: v.contiguous() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"}
    )


@pytest.fixture
def model(tmp_path):
    return make_model_dir(tmp_path / "model", layers=2)


# --------------------------------------------------------------------------- the loader's report


@pytest.mark.parametrize(
    "lost", ["layers.1.mlp.up_proj", "layers.0.input_layernorm", "lm_head", "embed_tokens"]
)
def test_missing_weights_are_refused(model, lost):
    rewrite(model, lambda tensors: {k: v for k, v in tensors.items() if lost not in k})
    with pytest.raises(ValueError, match=f"--model .*: lacks .*{lost}.* and they would be random"):
        load(model)


def test_a_tensor_of_another_shape_is_refused_and_named(tmp_path, model):
    rewrite(model, lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"][:-1]})
    with pytest.raises(
        ValueError, match=r"has the wrong shape for model\.norm\.weight \(\(31,\), not \(32,\)\)"
    ):
        load(model)
    experts = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
    mixtral = save(tmp_path / "mixtral", "MixtralConfig", experts)
    rewrite(mixtral, lambda tensors: {k: v for k, v in tensors.items() if ".experts.2." not in k})
    with pytest.raises(
        ValueError, match=r"has the wrong shape for .*mlp\.experts\.down_proj.*would be random"
    ):
        load(mixtral)


def test_a_config_with_more_layers_than_the_file_is_refused(model):
    file = model / "config.json"
    config = json.loads(file.read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks .* and \d+ more tensors of the model"):
        load(model)


def test_weights_that_are_not_used_are_named(model, caplog):
    rewrite(model, lambda tensors: tensors | {"model.layers.7.mlp.up_proj.weight": torch.ones(2, 2)})
    load(model)
    assert "has weights that the model does not use: model.layers.7.mlp.up_proj.weight" in caplog.text


def test_missing_weights_of_a_reference_name_its_flag(model, tmp_path):
    broken = make_model_dir(tmp_path / "ref", layers=2)
    rewrite(broken, lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp" not in k})
    with pytest.raises(ValueError, match=r"--ref_model .*ref: lacks"):
        start(tiny_config(tmp_path, model=str(model), ref_model=str(broken), beta=0.1))


def adapter(tmp_path, model):
    """An adapter of `model`, written by a run of one step."""
    run = start(
        tiny_config(tmp_path, model=str(model), lora_r=2, lora_save="adapter", max_steps=1, dtype="float32")
    )
    train(run)
    run.close()
    return tmp_path / "run" / "final"


def test_an_adapter_whose_keys_have_another_prefix_is_refused(model, tmp_path):
    path = adapter(tmp_path, model)
    load(path)
    rewrite(
        path,
        lambda tensors: {
            k.replace("base_model.model.model", "base_model.model"): v for k, v in tensors.items()
        },
    )
    with pytest.raises(ValueError, match=r"the adapter lacks weights, which would be random: .*lora_A"):
        load(path)


@pytest.mark.filterwarnings("ignore")  # peft says that the embeddings are saved
def test_an_adapter_with_new_tokens_gives_its_base_room_for_them(model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    rows = base.get_input_embeddings().weight.shape[0] + 2
    base.resize_token_embeddings(rows)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    config.base_model_name_or_path = str(model)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(model)).save_pretrained(tmp_path / "adapter")
    assert load(tmp_path / "adapter").model.get_input_embeddings().weight.shape[0] == rows


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda file: file.write_bytes(file.read_bytes()[:-100]),
            r"model\.safetensors is damaged .*download it again",
        ),
        (lambda file: file.write_bytes(b""), r"model\.safetensors is damaged \(0 bytes\)"),
        (
            lambda file: file.write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
            ),
            r"model\.safetensors is a pointer of git-lfs",
        ),
    ],
    ids=["truncated", "empty", "git-lfs"],
)
def test_damaged_weights_are_named(model, damage, said):
    damage(model / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        load(model)


# --------------------------------------------------------------------------- dtypes


def test_an_adapter_leaves_rotary_frequencies_as_they_are(model):
    lora = Lora(2, 4.0, ("q_proj",), str(model), 0)
    plain, adapted = load(model, "bfloat16"), load(model, "bfloat16", lora=lora)
    buffers = dict(adapted.model.named_buffers())
    assert buffers
    for name, buffer in plain.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
        assert buffers[name].dtype == torch.float32


def test_a_tensor_that_is_kept_in_float32_stays_so_in_files(tmp_path):
    """The bias of DeepSeek-V3's router, beside weights in bfloat16."""
    model = save(tmp_path / "model", "DeepseekV3Config", DEEPSEEK)
    bias = torch.tensor([1 / 3, -1 / 7, 0.1, 0.2])

    def narrow(tensors):
        return {k: bias if "correction" in k else v.bfloat16() for k, v in tensors.items()}

    rewrite(model, narrow)
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))
    config = tiny_config(tmp_path, dtype="float32", max_steps=2, save_steps=1)
    run = start(config)
    train(run)
    run.close()
    for directory in ("checkpoint-1", "final"):
        saved = load_file(tmp_path / "run" / directory / "model.safetensors")
        kinds = {name: tensor.dtype for name, tensor in saved.items()}
        (name,) = [name for name in kinds if "correction" in name]
        assert torch.equal(saved[name], bias)
        assert {kind for other, kind in kinds.items() if other != name} == {torch.bfloat16}


def test_a_checkpoint_has_the_buffers_that_the_run_had(tmp_path):
    """Gemma's embedding scale follows the dtype of its directory."""
    save(tmp_path / "model", "Gemma3TextConfig", SIZES | {"layer_types": ["full_attention"] * 2})
    ends = []
    for name, stops in (("whole", (3,)), ("twice", (2, 3))):
        for max_steps in stops:
            resume = "auto" if max_steps > stops[0] else ""
            run = start(
                tiny_config(
                    tmp_path,
                    output_dir=str(tmp_path / name),
                    save_dtype="bfloat16",
                    save_steps=2,
                    max_steps=max_steps,
                    resume_from_checkpoint=resume,
                )
            )
            train(run)
            run.close()
        ends.append((tmp_path / name / "metrics.jsonl").read_text().count("\n"))
        ends.append({n: p.detach().clone() for n, p in run.policy.model.named_parameters()})
    assert ends[0] == ends[2] == 3
    assert all(torch.equal(ends[1][name], ends[3][name]) for name in ends[1])


# --------------------------------------------------------------------------- randomness


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("OPTConfig", {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
         | {"max_position_embeddings": 64, "layerdrop": 0.5, "word_embed_proj_dim": 32}),
        ("MixtralConfig", SIZES | {"num_local_experts": 4, "router_jitter_noise": 0.5}),
        ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.5}),
    ],
    ids=["layerdrop", "router jitter", "hidden dropout"],
)  # fmt: skip
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_nothing_in_training_is_random(tmp_path, name, settings, again):
    save(tmp_path / "model", name, settings)
    ends = []
    for run_name in ("a", "b"):
        torch.manual_seed(len(ends))
        how = {"dtype": "float32", "max_steps": 2, "gradient_checkpointing": again}
        run = start(tiny_config(tmp_path, output_dir=str(tmp_path / run_name), **how))
        train(run)
        run.close()
        ends.append({n: p.detach().clone() for n, p in run.policy.model.named_parameters()})
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])
