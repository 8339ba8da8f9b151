"""Shared prompts against repeated ones: forward and backward of the same samples.

    python benchmarks/prefix.py
    python benchmarks/prefix.py --models 5M --shapes 4x8:192+64 2x8:512+8-64 --repeats 9 --clock cpu

A shape is prompts × completions of each : tokens of both, as a number or as shortest-longest. Padded and shared
micro-batches go through Policy and the loss. Their log-probs and gradients are compared first. Then they take turns, and
the median of each is reported. Next to the measured ratio is the estimate by which --share_prompts auto decides. Prints a
table and JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time

import torch
from packing import MODELS, compare, learn, make_policy
from rich.console import Console
from rich.table import Table

from grpokit.batch.collate import collate
from grpokit.batch.cuts import cut_samples
from grpokit.parallel import default_device
from grpokit.types import Sample

SHAPES = [
    "4x8:8+64",
    "4x8:32+64",
    "4x8:64+64",
    "4x8:192+64",
    "1x8:192+64",
    "4x8:512+64",
    "4x2:192+64",
    "4x8:64+256",
    "4x8:64+512",
    "1x8:64+512",
    "4x8:128-256+8-64",
    "4x8:64-512+64-512",
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["5M"])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--micro_batch_tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that is shared"
    )
    return parser.parse_args()


def make_rows(shape: str, vocabulary: int) -> list[Sample]:
    found = re.fullmatch(r"(\d+)x(\d+):(\d+)(?:-(\d+))?\+(\d+)(?:-(\d+))?", shape)
    if found is None:
        raise SystemExit(f"--shapes {shape}: expected one such as 4x8:192+64 or 4x8:128-256+8-64")
    groups, each, *bounds = (None if n is None else int(n) for n in found.groups())
    noise, rows = torch.Generator().manual_seed(0), []

    def tokens(low: int, high: int | None) -> torch.Tensor:
        count = int(torch.randint(low, (high or low) + 1, (), generator=noise))
        return torch.randint(vocabulary, (count,), generator=noise)

    for group in range(groups):
        prompt = tuple(tokens(*bounds[:2]).tolist())
        for index in range(group * each, (group + 1) * each):
            ids, sign = tokens(*bounds[2:]), (-1.0) ** index
            every = torch.ones(len(ids), dtype=torch.bool)
            rows.append(Sample(index, group, prompt, ids, every, sign, 1e-3, len(ids), -torch.ones(len(ids))))
    return rows


def measure(name: str, shape: str, args: argparse.Namespace) -> dict:
    policy, rows = make_policy(name), make_rows(shape, MODELS[name][-1])
    cuts = {
        way: cut_samples(rows, args.micro_batch_tokens, share=share)
        for way, share in {"padded": "never", "shared": "always"}.items()
    }
    ways = {
        way: [collate(part, cut.layout, policy.device) for part in cut.parts[0]] for way, cut in cuts.items()
    }
    apart = compare(policy, ways)
    assert apart < 1e-4, f"{shape}: padded and shared differ by {apart}"
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, parts in ways.items():
            start = clock()
            learn(policy, parts)
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[way].append(clock() - start)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    inputs = {
        way: sum(m.input_ids.numel() + (m.prefix.input_ids.numel() if m.prefix else 0) for m in parts)
        for way, parts in ways.items()
    }
    return {
        "model": name,
        "shape": shape,
        "micro_batches": {way: len(parts) for way, parts in ways.items()},
        "tokens": inputs,
        "largest_difference": apart,
        "seconds": {way: round(value, 5) for way, value in median.items()},
        "spread": {way: [round(min(t), 5), round(max(t), 5)] for way, t in seconds.items()},
        "shared_over_padded": round(median["shared"] / median["padded"], 3),
        "estimate": round(cuts["shared"].loads[0] / cuts["padded"].loads[0], 3),
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.num_threads)
    table = Table(title="shared over padded: below 1, sharing is faster", title_justify="left")
    for heading in ("model", "shape", "tokens", "time", "estimate"):
        table.add_column(heading, justify="left" if heading in ("model", "shape") else "right")
    results = []
    for name in args.models:
        for shape in args.shapes:
            r = measure(name, shape, args)
            results.append(r)
            # Progress, because it takes minutes.
            print(f"{name} {shape}: {r['seconds']}", file=sys.stderr, flush=True)
            tokens = r["tokens"]["shared"] / r["tokens"]["padded"]
            table.add_row(
                name, shape, f"{tokens:.2f}", f"{r['shared_over_padded']:.2f}", f"{r['estimate']:.2f}"
            )
    Console().print(table)
    machine = {"processor": platform.machine(), "device": str(default_device()), "threads": args.num_threads}
    print(json.dumps({"torch": torch.__version__, "machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
