"""Padded against packed samples of ragged lengths: forward and backward of the same samples. Prints a table and JSON.

    python benchmarks/packing.py
    python benchmarks/packing.py --models tiny --lengths 8:64 --repeats 9

Padded: samples sorted by length, each micro-batch as wide as its longest. Packed: samples one after the other, kept apart
by position ids; without a varlen kernel that is a dense block-diagonal mask. Both go through Policy and the loss. Their
log-probs and gradients are compared first. Then they take turns, and the median of each is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from grpokit.batch.collate import collate
from grpokit.batch.cuts import cut_samples
from grpokit.losses import make_loss
from grpokit.parallel import default_device
from grpokit.policy.policy import Policy
from grpokit.types import MicroBatch, Sample

MODELS = {  # a Qwen3's hidden size, layers, feed-forward size and vocabulary
    "tiny": (64, 2, 128, 16),
    "5M": (256, 6, 768, 1024),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--lengths", nargs="+", default=["8:64", "64:512"], help="completions, shortest:longest"
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--micro_batch_tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=1)
    return parser.parse_args()


def make_policy(name: str) -> Policy:
    from transformers import AutoModelForCausalLM, Qwen3Config

    hidden, layers, wide, vocabulary = MODELS[name]
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=wide,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config), 1.0, torch.float32, torch.float32).to(
        default_device()
    )


def make_rows(lengths: str, count: int, prompt: int, vocabulary: int) -> list[Sample]:
    low, high = map(int, lengths.split(":"))
    noise = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        n = int(torch.randint(low, high + 1, (), generator=noise))
        ids = torch.randint(vocabulary, (prompt + n,), generator=noise)
        every = torch.ones(n, dtype=torch.bool)
        rows.append(
            Sample(
                index,
                index // 8,
                tuple(ids[:prompt].tolist()),
                ids[prompt:],
                every,
                (-1.0) ** index,
                1e-3,
                n,
                -torch.ones(n),
            )
        )
    return rows


def learn(policy: Policy, parts: list[MicroBatch]) -> dict[int, torch.Tensor]:
    """Runs forward and backward of all micro-batches. Returns the samples' log-probs."""
    policy.zero_grad()
    found = {}
    for micro in parts:
        scores, output = policy(micro, make_loss("dapo"))
        output.loss.backward()
        split = scores.logps.detach().split([row.length for row in micro.samples])
        found |= dict(zip((row.index for row in micro.samples), split, strict=True))
    return found


def compare(policy: Policy, ways: dict[str, list[MicroBatch]]) -> float:
    """Returns the largest difference between padded and packed: of log-probs, and of gradients relative to the largest."""
    logps, gradients = [], []
    for parts in ways.values():
        logps.append(learn(policy, parts))
        gradients.append(torch.cat([p.grad.flatten().clone() for p in policy.parameters()]))
    apart = max(float((logps[0][i] - logps[1][i]).abs().max()) for i in logps[0])
    return max(apart, float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()))


def measure(name: str, lengths: str, budget: int, args: argparse.Namespace) -> dict:
    policy = make_policy(name)
    rows = make_rows(lengths, args.rows, args.prompt_tokens, MODELS[name][-1])
    ways = {way: micro_batches(rows, budget, policy.device, way == "packed") for way in ("padded", "packed")}
    apart = compare(policy, ways)
    assert apart < 1e-4, f"padded and packed differ by {apart}"
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, parts in ways.items():
            start = time.perf_counter()
            learn(policy, parts)
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    tokens = sum(row.num_tokens for row in rows)
    slots = sum(micro.input_ids.numel() for micro in ways["padded"])
    return {
        "model": name,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "completions": lengths,
        "micro_batch_tokens": budget,
        "padding": round(1 - tokens / slots, 4),
        "micro_batches": {way: len(parts) for way, parts in ways.items()},
        "largest_difference": apart,
        "seconds": {way: round(value, 5) for way, value in median.items()},
        "spread": {way: [round(min(t), 5), round(max(t), 5)] for way, t in seconds.items()},
        "packed_over_padded": round(median["packed"] / median["padded"], 3),
    }


def micro_batches(rows: list[Sample], budget: int, device: torch.device, packed: bool) -> list[MicroBatch]:
    """One rank's forwards of these samples."""
    cut = cut_samples(rows, budget, packed=packed)
    return [collate(part, cut.layout, device) for part in cut.parts[0]]


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.num_threads)
    results = [
        measure(name, lengths, budget, args)
        for name in args.models
        for lengths in args.lengths
        for budget in args.micro_batch_tokens
    ]
    table = Table(title="time of packed over padded: above 1, padded is faster", title_justify="left")
    for heading in ("model", "completions", "budget", "padding", "packed / padded"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for r in results:
        ratio, padding = f"{r['packed_over_padded']:.2f}", f"{r['padding']:.0%}"
        table.add_row(r["model"], r["completions"], f"{r['micro_batch_tokens']:,}", padding, ratio)
    Console().print(table)
    machine = {"processor": platform.machine(), "device": str(default_device()), "threads": args.num_threads}
    print(json.dumps({"torch": torch.__version__, "machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
