"""Tiny models of any architecture that transformers has."""

from __future__ import annotations

import torch

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "bos_token_id": None,
}

DEEPSEEK = {name: size for name, size in SIZES.items() if name != "head_dim"} | {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def save(path, name, settings, tokenizer=None):
    """A model of that configuration in `path`, with the tokenizer of the tests if no other is given."""
    import transformers

    from grpokit.commands.tasks import sort_digits

    tokenizer = tokenizer or sort_digits.make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, name)(**({"vocab_size": len(tokenizer)} | ids | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
