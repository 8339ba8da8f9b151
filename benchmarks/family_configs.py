"""Tiny models of many families of transformers: their configurations, and a directory with a tokenizer of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

DENSE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
NO_HEAD_DIM = {name: size for name, size in DENSE.items() if name != "head_dim"}
NEOX = {name: size for name, size in NO_HEAD_DIM.items() if name != "num_key_value_heads"}
MOE = DENSE | {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DEEPSEEK = NO_HEAD_DIM | {
    "num_key_value_heads": 4,
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
}
HYBRID = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
MOE_OF_JAMBA = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}
LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [2.0] * 4,
    "short_factor": [1.0] * 4,
    "original_max_position_embeddings": 32,
}

# name → (the config's class, its options)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", DENSE),
    "Llama tied": ("LlamaConfig", DENSE | {"tie_word_embeddings": True}),
    "Llama 4": (
        "Llama4TextConfig",
        MOE | {"intermediate_size_mlp": 32, "interleave_moe_layer_step": 1, "attention_chunk_size": 64},
    ),
    "Qwen2": ("Qwen2Config", NO_HEAD_DIM),
    "Qwen3": ("Qwen3Config", DENSE),
    "Qwen2-MoE": ("Qwen2MoeConfig", NO_HEAD_DIM | MOE | {"shared_expert_intermediate_size": 16}),
    "Qwen3-MoE": ("Qwen3MoeConfig", MOE),
    "Qwen3-Next": ("Qwen3NextConfig", MOE | LINEAR | {"shared_expert_intermediate_size": 16}),
    "Gemma": ("GemmaConfig", DENSE),
    "Gemma 2": ("Gemma2Config", DENSE | {"sliding_window": 8}),
    "Gemma 3": ("Gemma3TextConfig", DENSE | {"sliding_window": 8}),
    "Mistral": ("MistralConfig", DENSE | {"sliding_window": None}),
    "Mistral with a window": ("MistralConfig", DENSE | {"sliding_window": 6}),
    "Ministral": ("MinistralConfig", DENSE | {"sliding_window": 6}),
    "Mixtral": ("MixtralConfig", MOE),
    "gpt-oss": ("GptOssConfig", MOE | {"sliding_window": 6}),
    "DeepSeek-V2": ("DeepseekV2Config", DEEPSEEK),
    "DeepSeek-V3": ("DeepseekV3Config", DEEPSEEK),
    "GLM": ("GlmConfig", DENSE),
    "GLM-4": ("Glm4Config", DENSE),
    "GLM-4 MoE": ("Glm4MoeConfig", MOE | DEEPSEEK | {"head_dim": 8}),
    "Phi": ("PhiConfig", NO_HEAD_DIM),
    "Phi-3": ("Phi3Config", NO_HEAD_DIM | {"pad_token_id": 0}),
    "Phi-3 longrope": (
        "Phi3Config",
        NO_HEAD_DIM
        | {"pad_token_id": 0, "rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "PhiMoE": ("PhimoeConfig", MOE),
    "OLMo": ("OlmoConfig", NO_HEAD_DIM),
    "OLMo 2": ("Olmo2Config", NO_HEAD_DIM),
    "OLMo 3": ("Olmo3Config", NO_HEAD_DIM | {"sliding_window": 6}),
    "OLMoE": ("OlmoeConfig", MOE),
    "Granite": ("GraniteConfig", NO_HEAD_DIM | {"logits_scaling": 2.0}),
    "Granite MoE": ("GraniteMoeConfig", NO_HEAD_DIM | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Cohere": ("CohereConfig", NO_HEAD_DIM | {"logit_scale": 0.5}),
    "Cohere 2": ("Cohere2Config", DENSE | {"sliding_window": 6, "logit_scale": 0.5}),
    "StableLM": ("StableLmConfig", NO_HEAD_DIM),
    "Starcoder2": ("Starcoder2Config", NO_HEAD_DIM),
    "SmolLM3": ("SmolLM3Config", NO_HEAD_DIM),
    "Nemotron": ("NemotronConfig", DENSE),
    "EXAONE 4": ("Exaone4Config", DENSE | {"sliding_window": 6}),
    "ERNIE 4.5": ("Ernie4_5Config", DENSE),
    "ERNIE 4.5 MoE": (
        "Ernie4_5_MoeConfig",
        NO_HEAD_DIM | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    ),
    "HunYuan": ("HunYuanDenseV1Config", DENSE),
    "Seed-OSS": ("SeedOssConfig", DENSE),
    "Arcee": ("ArceeConfig", DENSE),
    "Apertus": ("ApertusConfig", NO_HEAD_DIM),
    "Helium": ("HeliumConfig", DENSE),
    "DiffLlama": ("DiffLlamaConfig", NO_HEAD_DIM),
    "MiniMax": ("MiniMaxConfig", MOE | {"block_size": 8}),
    "dots1": ("Dots1Config", MOE | DEEPSEEK | {"head_dim": 8, "n_shared_experts": 1}),
    "GPT-2": ("GPT2Config", GPT),
    "GPT-J": ("GPTJConfig", GPT | {"rotary_dim": 4}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "max_position_embeddings": 64,
        },
    ),
    "GPT-NeoX": ("GPTNeoXConfig", NEOX),
    "GPT-BigCode": ("GPTBigCodeConfig", GPT),
    "Bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Falcon": ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "Falcon with alibi": (
        "FalconConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    ),
    "MPT": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "OPT": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "CodeGen": ("CodeGenConfig", GPT | {"rotary_dim": 4}),
    "Mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    "RWKV": (
        "RwkvConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
    ),
    "Falcon-H1": (
        "FalconH1Config",
        DENSE
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
            "lm_head_multiplier": 0.5,
        },
    ),
    "Bamba": ("BambaConfig", NO_HEAD_DIM | HYBRID | {"attn_layer_indices": [1]}),
    "Jamba": (
        "JambaConfig",
        NO_HEAD_DIM
        | MOE_OF_JAMBA
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "Granite 4": (
        "GraniteMoeHybridConfig",
        NO_HEAD_DIM
        | HYBRID
        | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "LFM2": ("Lfm2Config", NO_HEAD_DIM | {"layer_types": ["conv", "full_attention"]}),
    "RecurrentGemma": ("RecurrentGemmaConfig", DENSE | {"lru_width": 32, "attention_window_size": 8}),
}


def make_model(path: Path, name: str) -> Path:
    """Makes the tiny model of a family in `path`, with random weights, and a tokenizer of digits."""
    import transformers

    from grpokit.commands.tasks import sort_digits

    tokenizer = sort_digits.make_tokenizer()
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    kind, settings = FAMILIES[name]
    config = getattr(transformers, kind)(
        **({"vocab_size": len(tokenizer), "initializer_range": 0.2} | ids | settings)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
