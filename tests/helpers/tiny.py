"""Small real parts for the tests: model directories, datasets and configurations, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from grpokit.commands.tasks import sort_digits
from grpokit.config.options import TrainConfig
from grpokit.types import Prompt, Rollout, RolloutGroup
from helpers.places import REWARDS


def make_model_dir(
    path: Path, *, seed: int = 0, layers: int = 1, tied: bool = False, hidden: int = 32, **generation
) -> Path:
    """A Qwen3 of a few thousand parameters with sort_digits' tokenizer; `generation` goes to its generation_config."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    tokenizer = sort_digits.make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        initializer_range=0.3,  # far from uniform, so that sampling filters and penalties would show
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if generation:
        shipped = json.loads((path / "generation_config.json").read_text())
        (path / "generation_config.json").write_text(json.dumps(shipped | generation))
    return path


def write_rows(path: Path, rows: list) -> Path:
    """JSON lines; a string stands for itself, so a malformed row can be written."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


DIGITS = ["31", "254", "9081", "77", "5210", "86", "430", "19", "645", "2738"]
ROWS = [{"prompt": d + "=", "answer": "".join(sorted(d))} for d in DIGITS]


def tiny_config(tmp_path: Path, **changes) -> TrainConfig:
    """A run of a few seconds on a tiny model in tmp_path, which is made when it isn't there yet."""
    model, data = tmp_path / "model", tmp_path / "train.jsonl"
    if not model.exists():
        make_model_dir(model)
    if not data.exists():
        write_rows(data, ROWS)
    settings = {
        "model": str(model),
        "dataset": str(data),
        "output_dir": str(tmp_path / "run"),
        "reward_funcs": (f"{REWARDS}:digits_in_order",),
        "loss_type": "dapo",
        "prompts_per_step": 4,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "num_threads": 1,
        "dtype": "float64",
    }
    return TrainConfig(**(settings | changes))


def group_of(rewards: list[float], lengths: list[int] | None = None, position: int = 0) -> RolloutGroup:
    """A scored group with made-up completions of the given lengths."""
    lengths = lengths or [3] * len(rewards)
    rollouts = tuple(
        Rollout(
            completion_ids=torch.arange(n) % 7 + 1,
            logps=-torch.ones(n),
            entropies=torch.ones(n),
            text="x",
            finish_reason="stop",
            policy_version=0,
            trainable=torch.ones(n, dtype=torch.bool),
        )
        for n in lengths
    )
    reward = torch.tensor(rewards, dtype=torch.float64)
    prompt = Prompt(position, (1, 2), "p", {}, "t.jsonl:1")
    return RolloutGroup(prompt, rollouts, rewards=reward[:, None], reward=reward)
