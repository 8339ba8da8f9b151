"""Runs of episodes: a tiny chat model, and tools and environments that any turn of it answers to."""

from __future__ import annotations

import torch
import transformers

from helpers.chat import chat_tokenizer
from helpers.places import TESTS
from helpers.tiny import tiny_config, write_rows

WORLDS = TESTS / "environments" / "worlds.py"
ROWS = [
    {"prompt": [{"role": "user", "content": f"Say {word}."}], "word": word}
    for word in ("a", "bb", "ccc", "d")
]


def make_chat_model(path, style="qwen"):
    tokenizer = chat_tokenizer(style)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():  # turns end soon
            model.lm_head.weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def config_of(tmp_path, **changes):
    if not (tmp_path / "model").exists():
        make_chat_model(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", ROWS)
    settings = {
        "reward_funcs": (),
        "environment": (f"{WORLDS}:Echo",),
        "max_completion_length": 60,
        "max_turn_length": 12,
        "max_turns": 3,
        "max_steps": 2,
    }
    return tiny_config(tmp_path, **(settings | changes))
