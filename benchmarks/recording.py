"""What does it cost to record tokens? The share of a step that --log_tokens takes, measured inside the step.

    python benchmarks/recording.py
    python benchmarks/recording.py --completions 64 --tokens 256 --record 8

A model of one layer samples completions of a fixed length (it has no end of sequence), and trains on them. The metric
time/tokens has the seconds of recording; the first step, in which the texts of all tokens are new, is left out of the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from grpokit import GRPOTrainer
from grpokit.commands.tasks import sort_digits

LIMIT = 0.01  # of a step


def make_model(folder: Path, tokens: int) -> str:
    """Makes a model of one layer whose context holds a prompt and so many tokens."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = sort_digits.make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=tokens + 64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def digits(completions: list[str], **columns: object) -> list[float]:
    """A reward that differs within groups: the share of the digit 1."""
    return [text.count("1") / max(1, len(text)) for text in completions]


def shares(folder: Path, completions: int, tokens: int, record: int, steps: int) -> list[tuple[float, float]]:
    """Returns (seconds of recording, seconds of the step) of each step."""
    trainer = GRPOTrainer(
        make_model(folder / "model", tokens),
        digits,
        train_dataset=[{"prompt": "31="}, {"prompt": "42="}],
        prompts_per_step=completions // 8,
        num_generations=8,
        num_iterations=2,
        max_completion_length=tokens,
        min_completion_length=tokens,
        max_steps=steps,
        log_tokens=record,
        log_completions=0,
        output_dir=str(folder / "run"),
    )
    trainer.train()
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [(row["time/tokens"], row["time/step"]) for row in rows]


def main() -> int:
    """Prints the medians. Returns 1 where one is above the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--completions", type=int, default=64, help="completions of a step, a multiple of 8")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of each")
    parser.add_argument("--record", type=int, nargs="+", default=[8, 64], help="completions to record")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    kept = True
    for record in args.record:
        with tempfile.TemporaryDirectory() as folder:
            found = shares(Path(folder), args.completions, args.tokens, record, args.steps)[1:]
        recording, step = (statistics.median(column) for column in zip(*found, strict=True))
        share = statistics.median(a / b for a, b in found)
        print(
            f"{record} of {args.completions} completions of {args.tokens} tokens: {recording * 1e3:.1f} ms of a step of "
            f"{step:.2f} s, {share:.2%}",
            flush=True,
        )
        kept &= share <= LIMIT
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
