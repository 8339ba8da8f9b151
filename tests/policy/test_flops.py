"""FLOPs from a model's shapes, against torch's own counter of the operations that run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from grpokit.batch.plan import plan_step
from grpokit.losses import make_loss
from grpokit.policy.architecture import backbone
from grpokit.policy.flops import ModelFlops, Work, model_flops, peak_flops, rollout_flops
from grpokit.policy.learn import StepProgress, learn
from grpokit.policy.load import load_policy
from grpokit.policy.scoring import Learning, score
from helpers.architectures import DEEPSEEK, SIZES, save
from helpers.tiny import group_of, make_model_dir

MODELS = {
    "LlamaConfig": SIZES,
    "Qwen2Config": SIZES,
    "Qwen3Config": SIZES | {"head_dim": 16},
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None},
    "Qwen3MoeConfig": SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "MixtralConfig": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3Config": DEEPSEEK,
}


def model_of(path, name, settings):
    """A model whose attention and experts run as matrix products that the counter knows."""
    from transformers import AutoModelForCausalLM

    save(path, name, settings)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    model.config._experts_implementation = "eager"
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_forward_costs_what_the_counter_counts(tmp_path, name):
    model = model_of(tmp_path, name, MODELS[name])
    costs, rows, length, predicted = model_flops(model), 3, 20, 5
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = backbone(model)(input_ids=torch.randint(0, 10, (rows, length))).last_hidden_state
        model.get_output_embeddings()(hidden[:, :predicted])
    counted = counter.get_total_flops()
    assert costs.forward(rows * length, [length] * rows, rows * predicted) == pytest.approx(counted, rel=0.01)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("m") / "model", layers=2)


def policy_of(directory, **how):
    """A policy whose attention is made of matrix products that the counter knows."""
    return load_policy(
        str(directory),
        dtype="float32",
        temperature=1.0,
        device=torch.device("cpu"),
        attn_implementation="eager",
        **how,
    )


def groups_of(lengths):
    """Groups of two completions with these lengths, and advantages."""
    groups = [group_of([1.0, 0.0], list(pair)) for pair in lengths]
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return [dataclasses.replace(group, advantages=advantages) for group in groups]


def counted(policy, lengths, **how):
    """(ours, the counter's) FLOPs of a step's learning."""
    loss, work = make_loss("grpo"), Work()
    progress = StepProgress(plan_step(groups_of(lengths), loss))
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    with FlopCounterMode(display=False) as counter:
        learn(policy, None, progress, loss, optimizer, Learning(work=work, **how))
    return work.flops, counter.get_total_flops()


def test_an_update_costs_what_the_counter_counts(directory):
    ours, theirs = counted(policy_of(directory), [(6, 6), (6, 6)])
    assert ours == pytest.approx(theirs, rel=0.02)


def test_scoring_before_further_iterations_counts_too(directory):
    policy = policy_of(directory)
    once, twice = (counted(policy, [(6, 6)], num_iterations=n)[0] for n in (1, 2))
    assert twice == pytest.approx(2 * once)


def test_padding_is_not_counted_and_cuts_change_nothing(directory):
    policy = policy_of(directory)
    lengths = [(2, 9), (5, 3)]
    ours, theirs = counted(policy, lengths)
    assert ours < theirs  # the counter counts the padding
    assert counted(policy, lengths, micro_batch_tokens=1)[0] == pytest.approx(ours)
    assert counted(policy, lengths, packed=True)[0] == pytest.approx(ours)


def test_a_shared_prompt_counts_once(directory):
    policy = policy_of(directory)
    ours, theirs = counted(policy, [(6, 6), (6, 6)], share="always")
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours < counted(policy, [(6, 6), (6, 6)])[0]


def test_frozen_weights_get_no_gradient_of_their_own(directory):
    whole = counted(policy_of(directory), [(6, 6)])[0]
    policy = policy_of(directory)
    for parameter in policy.parameters():
        parameter.requires_grad = False
    next(iter(backbone(policy.model).layers)).self_attn.q_proj.weight.requires_grad = True
    part = counted(policy, [(6, 6)])[0]
    assert 0.6 * whole < part < 0.8 * whole  # a forward and the gradients of the inputs are two of three


def test_scoring_costs_a_forward(directory):
    policy, work = policy_of(directory), Work()
    samples = plan_step(groups_of([(6, 6)]), make_loss("grpo"))[0].samples
    score(policy, samples, Learning(work=work))
    costs = model_flops(policy.model)
    lengths = [sample.num_tokens for sample in samples]
    assert work.flops == costs.forward(sum(lengths), lengths, sum(sample.length for sample in samples))


def test_sampling_costs_a_prompt_once_and_each_token_once():
    costs = ModelFlops(token=10.0, trained=0.0, head=3.0, trained_head=0.0, pairs=((1.0, None),))
    # the prompt's 2 tokens: 20 and 2 × 2 pairs; 3 + 1 tokens: 13 each; they see 2, 3, 4 and 2 tokens
    assert rollout_flops(costs, [group_of([1.0, 0.0], [3, 1])]) == 20 + 4 + 4 * 13 + (2 + 3 + 4) + 2


def test_a_window_bounds_what_a_token_sees():
    costs = ModelFlops(token=0.0, trained=0.0, head=0.0, trained_head=0.0, pairs=((1.0, 4), (1.0, None)))
    assert costs.attention(10, 10) == 10 * 4 + 10 * 10
    slow = sum(min(4, 2 + t) + 2 + t for t in range(6))
    assert costs.decoding(2, 6) == slow
    assert costs.decoding(7, 3) == 3 * 4 + 7 + 8 + 9


def test_the_peak_is_known_for_gpus_in_bfloat16_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 989e12
    assert peak_flops(torch.device("cuda"), torch.float32) is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 362e12
    for name in (
        "NVIDIA RTX A1000",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) is None
