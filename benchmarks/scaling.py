"""Does the cost of a token stay flat? An update's seconds per token over tokens, vocabulary, group size, prompt length.

    python benchmarks/scaling.py --json scaling.json --plot scaling.png

Each axis varies one number and keeps the others. The seconds are divided by the work that must grow: the tokens that go
through the model, times its parameters. A rising line shows a cost that grows faster than the work (attention's does). The
points take turns. Each figure is a median over the rounds, relative to the axis's first point.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import arguments, environment, figure, finish, table
from decode import MEDIUM, make_model

from grpokit.batch.collate import collate
from grpokit.batch.cuts import cut_samples
from grpokit.batch.plan import plan_step
from grpokit.losses import make_loss
from grpokit.parallel import default_device
from grpokit.policy.learn import Learning, optimize
from grpokit.policy.load import load_policy
from grpokit.policy.policy import Policy
from grpokit.types import MicroBatch, Prompt, Rollout, RolloutGroup, Update


@dataclass(frozen=True)
class Point:
    """One size of an update."""

    prompts: int = 4
    generations: int = 8
    prompt_tokens: int = 64
    completion_tokens: int = 64
    vocabulary: int = 4096


BASE = Point()
AXES = {
    "completions of a step": [replace(BASE, prompts=p) for p in (2, 4, 8, 16)],
    "completion length": [replace(BASE, completion_tokens=t) for t in (32, 64, 128, 256)],
    "prompt length": [replace(BASE, prompt_tokens=t) for t in (16, 64, 256, 512)],
    "group size": [replace(BASE, prompts=32 // g, generations=g) for g in (2, 4, 8, 16)],
    "vocabulary": [replace(BASE, vocabulary=v) for v in (4096, 16384, 65536)],
}
VARIED = dict(
    zip(AXES, ("prompts", "completion_tokens", "prompt_tokens", "generations", "vocabulary"), strict=True)
)


def groups_of(point: Point) -> list[RolloutGroup]:
    """Makes groups of random tokens with advantages of either sign."""
    draw = torch.Generator().manual_seed(0)
    signs = torch.tensor([1.0, -1.0]).repeat(point.generations)[: point.generations].double()
    ones = torch.ones(point.completion_tokens)
    return [
        RolloutGroup(
            Prompt(
                p, tuple(torch.randint(4096, (point.prompt_tokens,), generator=draw).tolist()), "", {}, ""
            ),
            tuple(
                Rollout(
                    torch.randint(4096, (point.completion_tokens,), generator=draw),
                    -ones,
                    ones,
                    "",
                    "stop",
                    0,
                    ones.bool(),
                )
                for _ in range(point.generations)
            ),
            advantages=signs,
        )
        for p in range(point.prompts)
    ]


def one_rank(update: Update) -> list[MicroBatch]:
    """The forwards of an update on one rank."""
    cut = cut_samples(update.samples, 8192, share="auto")
    return [collate(part, cut.layout, "cpu") for part in cut.parts[0]]


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seen, results = environment(args), {}
    with tempfile.TemporaryDirectory() as folder:
        policies = {
            v: load_policy(
                make_model(Path(folder) / str(v), **(MEDIUM | {"vocab_size": v})),
                dtype="float32",
                temperature=1.0,
                device=default_device(),
            )
            for v in {point.vocabulary for axis in args.axes for point in AXES[axis]}
        }
    for axis in args.axes:
        results[axis] = measure(AXES[axis], policies, args.rounds)
        name = VARIED[axis]
        rows = [[axis, *(str(getattr(point, name)) for point in AXES[axis])]]
        rows.append(["cost of a token", *(f"{share:.2f}" for share in results[axis]["cost"])])
        print(table(rows), flush=True)
    if args.plot:
        draw(args.plot, results)
    finish({"axes": results, "environment": seen}, args)


def measure(points: list[Point], policies: dict[int, Policy], rounds: int) -> dict[str, list[float]]:
    """Returns the medians of an axis: seconds of an update, and the cost of a token relative to the first point's."""
    loss = make_loss("dapo")
    updates = [plan_step(groups_of(point), loss)[0] for point in points]
    seconds: list[list[float]] = [[] for _ in points]
    for turn in range(rounds + 1):  # the first round warms up
        for k, (point, update) in enumerate(zip(points, updates, strict=True)):
            policy = policies[point.vocabulary]
            still = torch.optim.SGD(policy.parameters(), lr=0.0)
            start = time.perf_counter()
            optimize(policy, update, loss, still, Learning(share="auto"))
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[k].append(time.perf_counter() - start)
    medians = [statistics.median(values) for values in seconds]
    work = [
        sum(map(tokens_of, one_rank(update)))
        * sum(p.numel() for p in policies[point.vocabulary].parameters())
        for point, update in zip(points, updates, strict=True)
    ]
    each = [s / w for s, w in zip(medians, work, strict=True)]
    return {"seconds": medians, "cost": [value / each[0] for value in each]}


def tokens_of(micro: MicroBatch) -> int:
    """Counts the tokens that go through the model, padding and shared prompts included."""
    return micro.input_ids.numel() + (0 if micro.prefix is None else micro.prefix.input_ids.numel())


def draw(path: Path, results: dict[str, dict[str, list[float]]]) -> None:
    """Draws one panel per axis."""
    fig, axes = figure(1, len(results), 2.6 * len(results), 2.8)
    for ax, (axis, result) in zip(axes if len(results) > 1 else [axes], results.items(), strict=True):
        x = [getattr(point, VARIED[axis]) for point in AXES[axis]]
        ax.plot(x, result["cost"], "o-", color="#1b6ca8")
        ax.axhline(1, color="#9aa5b1", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{value:,}" for value in x], fontsize=8)
        ax.minorticks_off()
        ax.set_ylim(0, max(1.5, 1.1 * max(result["cost"])))
        ax.set_title(axis, fontsize=10)
    fig.supylabel("cost of a token, first point = 1", fontsize=10)
    fig.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
