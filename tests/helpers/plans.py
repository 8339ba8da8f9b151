"""Configurations of models, and their plans."""

from __future__ import annotations

import json
from pathlib import Path

from grpokit.config.options import PlanConfig
from grpokit.policy.load import skeleton
from grpokit.training.plan.estimate import make_plan

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
