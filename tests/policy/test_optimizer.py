"""Weight decay: which parameters it moves."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    Qwen3Config,
    Trainer,
)

from grpokit.config.options import TrainConfig
from grpokit.policy.optimizer import decayed_names, make_optimizer
from grpokit.policy.policy import Policy

QWEN = Qwen3Config(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    attention_bias=True,
)
GPT2 = GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=16)
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("config", [QWEN, GPT2])
def test_weight_decay_leaves_out_what_the_trainer_of_transformers_leaves_out(config):
    model = AutoModelForCausalLM.from_config(config)
    expected = set(Trainer.get_decay_parameter_names(None, model)) & {n for n, _ in model.named_parameters()}
    assert decayed_names(model) == expected
    assert 0 < len(expected) < len(list(model.parameters()))


def test_a_step_of_decay_alone_moves_neither_norms_nor_biases():
    policy = Policy(AutoModelForCausalLM.from_config(QWEN), 1.0, torch.float32, torch.float32)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    optimizer = make_optimizer(policy, TrainConfig(weight_decay=0.5, learning_rate=0.1))
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = decayed_names(policy.model)
    for name, parameter in policy.model.named_parameters():
        kept = 0.95 if name in decayed else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name])


def test_a_vision_tower_that_text_never_reaches_does_not_decay():
    text = {**SMALL, "vocab_size": 16, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3Config(
        text_config=text, vision_config={**SMALL, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=1
    )
    names = decayed_names(Gemma3ForConditionalGeneration(config))
    assert any("q_proj" in name for name in names)
    assert not any("vision" in name or "projector" in name for name in names)
