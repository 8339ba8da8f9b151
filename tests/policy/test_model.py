"""The model: what is loaded, what it computes in, and that its head is the one we think it is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from grpokit.logprobs import Head, linear_logprob
from grpokit.policy.load import load_policy, load_tokenizer, remove_dropout
from grpokit.policy.policy import Float64Throughout
from helpers.tiny import make_model_dir

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("m") / "model")


def load(directory, dtype="float32", temperature=1.0):
    return load_policy(str(directory), dtype=dtype, temperature=temperature, device=CPU)


def test_float64_is_float64_throughout(directory):
    """No operation of the forward gives a float32, though Qwen3's norms and rotary angles ask for one."""
    from torch.utils._python_dispatch import TorchDispatchMode

    narrow = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64:
                    narrow.append((str(func), x.dtype))
            return out

    policy = load(directory, "float64")
    with Watch(), policy.computing():
        policy.model(input_ids=torch.arange(5)[None])
    assert narrow == []
    with Watch():
        policy.model(input_ids=torch.arange(5)[None])
    assert narrow, "without the mode there are float32 parts: else this test could not fail"


def test_the_float64_mode_leaves_nothing_behind():
    with Float64Throughout():
        assert torch.ones(2).float().dtype == torch.float64
        assert torch.ones(2).to(torch.float32).dtype == torch.float64
        assert torch.zeros(1, dtype=torch.float32).dtype == torch.float64
    assert torch.ones(2).float().dtype == torch.float32


def test_parameters_are_float32_and_the_stored_type_is_remembered(tmp_path):
    path = make_model_dir(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    policy = load(path, "bfloat16")
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert policy.stored_dtype == torch.bfloat16
    assert policy.compute_dtype == torch.bfloat16


def test_dropout_is_removed(directory, caplog):
    path = make_model_dir(directory.parent / "dropout")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    policy = load(path)
    assert "dropout is off" in caplog.text
    policy.train()
    ids = torch.arange(6)[None]
    assert torch.equal(policy.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    assert remove_dropout(torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Dropout(0.0))) == 1


def test_head_with_scale_softcap_and_bias():
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 4), (9, 4), (9,)))
    targets = torch.arange(5)
    logits = 3.0 * torch.tanh((hidden @ weight.T + bias) * 0.5 / 3.0) / 0.7
    want = torch.log_softmax(logits, -1)[torch.arange(5), targets]
    got, entropies = linear_logprob(
        hidden, Head(weight, bias, scale=0.5, softcap=3.0), targets, temperature=0.7, with_entropy=True
    )
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    probs = logits.softmax(-1)
    torch.testing.assert_close(entropies, -(probs * probs.log()).sum(-1), rtol=1e-12, atol=1e-12)


def test_logprobs_have_the_gradient_of_log_softmax():
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, generator=g, dtype=torch.float64, requires_grad=True)
    f = lambda h, w: linear_logprob(h, Head(w), torch.tensor([0, 6, 3]), temperature=1.3, with_entropy=True)  # noqa: E731
    assert torch.autograd.gradcheck(f, (hidden, weight))


def test_logprobs_of_huge_logits_are_finite():
    hidden = torch.full((1, 2), 1e4)
    head = Head(torch.tensor([[1e4, 0.0], [0.0, -1e4]]))
    logps, entropies = linear_logprob(hidden, head, torch.tensor([0]), with_entropy=True)
    assert logps.tolist() == [0.0]
    assert entropies.tolist() == [0.0]


def test_gemma_softcap_is_read_from_its_config(tmp_path):
    """An architecture with final_logit_softcapping: the probe compares our head with its own."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        final_logit_softcapping=0.5,
        initializer_range=1.0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load(tmp_path).device == CPU


def test_a_head_that_is_not_understood_is_refused(tmp_path, monkeypatch):
    import grpokit.policy.probes

    path = make_model_dir(tmp_path / "model")
    monkeypatch.setattr(
        grpokit.policy.probes, "head", lambda model: Head(2 * model.get_output_embeddings().weight)
    )
    with pytest.raises(ValueError, match=r"head of Qwen3ForCausalLM .* does not know"):
        load(path)


def test_a_directory_that_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--model .*cannot be loaded"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"--model .*no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("asked", "small", "want"), [(0, True, 1), (0, False, 2), (3, True, 3), (3, False, 3)]
)
def test_a_small_model_gets_one_thread_unless_asked_otherwise(tmp_path, monkeypatch, asked, small, want):
    from grpokit.config.options import ModelConfig
    from grpokit.training.setup import models

    policy = load_policy(
        str(make_model_dir(tmp_path / "model")), dtype="float32", temperature=1.0, device=CPU
    )
    monkeypatch.setattr(models, "SMALL", 10**6 if small else 10)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        models.set_threads(ModelConfig(num_threads=asked), policy)
        assert torch.get_num_threads() == want
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler has many of its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED: --compile on a CPU (there is no g++)")
def test_compiled_layers_give_the_same_gradient_and_tokens(tmp_path):
    from helpers.running import start, train
    from helpers.tiny import tiny_config

    ends = []
    for compiled in (False, True):
        config = tiny_config(
            tmp_path, output_dir=str(tmp_path / str(compiled)), dtype="float32", compile=compiled, max_steps=2
        )
        run = start(config)
        assert (run.layout.share, run.layout.shares_not is not None) == (
            ("never", True) if compiled else ("auto", False)
        )
        train(run)
        run.close()
        ends.append(torch.cat([p.detach().flatten() for p in run.policy.parameters()]))
        lines = (tmp_path / str(compiled) / "completions.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        ends.append([row["completions"] for row in rows])
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-4)
    assert ends[3] == ends[1]
