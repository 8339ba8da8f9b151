"""Time of an update against the share of groups whose rewards are all equal, with and without dropping their samples.

    python benchmarks/dead_rows.py
    python benchmarks/dead_rows.py --json dead.json --plot dead.png

The rollouts are always the same. In a share of the groups every advantage is 0. With `--drop_dead_rows` (the default of a
run) their samples are dropped before the forward. The two gradient norms are compared before any time is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from decode import MEDIUM, make_model

from grpokit.batch.plan import plan_step
from grpokit.losses import make_loss
from grpokit.parallel import default_device
from grpokit.policy.learn import Learning, optimize
from grpokit.policy.load import load_policy
from grpokit.types import Prompt, Rollout, RolloutGroup

SHARES = (0.0, 0.3, 0.6, 0.9)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="", help="a Hugging Face model directory (default: a Qwen3 of 5M parameters)"
    )
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--completion_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default="")
    parser.add_argument("--plot", default="")
    return parser.parse_args()


def groups_of(args: argparse.Namespace, share: float, vocabulary: int) -> list[RolloutGroup]:
    """Makes groups of random tokens. The first `share` of them have advantage 0 throughout."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(args.groups):
        ids = torch.randint(vocabulary, (args.generations, args.completion_tokens), generator=draw)
        prompt = torch.randint(vocabulary, (args.prompt_tokens,), generator=draw).tolist()
        logps = -torch.ones(args.completion_tokens)
        rollouts = tuple(
            Rollout(row, logps, -logps, "", "stop", 0, torch.ones(len(row), dtype=torch.bool)) for row in ids
        )
        dead = number < round(share * args.groups)
        signs = torch.tensor([1.0, -1.0]).repeat(args.generations)[: args.generations].double()
        found.append(
            RolloutGroup(
                Prompt(number, tuple(prompt), "", {}, f"prompt {number}"),
                rollouts,
                advantages=torch.zeros_like(signs) if dead else signs,
            )
        )
    return found


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or make_model(Path(folder) / "model", **MEDIUM)
        policy = load_policy(path, dtype="float32", temperature=1.0, device=default_device())
    vocabulary = policy.model.config.get_text_config().vocab_size
    # The weights do not change.
    loss, optimizer = make_loss("dapo"), torch.optim.SGD(policy.parameters(), lr=0.0)
    cases = [(share, drop) for share in SHARES for drop in (True, False)]
    updates = {share: plan_step(groups_of(args, share, vocabulary), loss)[0] for share in SHARES}
    seconds: dict[tuple[float, bool], list[float]] = {case: [] for case in cases}
    norms: dict[tuple[float, bool], float] = {}
    for _ in range(args.rounds + 1):  # the first round warms up
        for share, drop in cases:
            start = time.perf_counter()
            metrics, _ = optimize(policy, updates[share], loss, optimizer, Learning(drop_dead_rows=drop))
            seconds[share, drop].append(time.perf_counter() - start)
            norms[share, drop] = metrics["grad_norm"].value
    for share in SHARES:
        assert abs(norms[share, True] - norms[share, False]) <= 1e-4 * norms[share, False], share
    base = statistics.median(seconds[0.0, True][1:])
    ratios = {str(share): statistics.median(seconds[share, True][1:]) / base for share in SHARES}
    kept = {str(share): statistics.median(seconds[share, False][1:]) / base for share in SHARES}
    result = {
        "ratio_dropped": ratios,
        "ratio_kept": kept,
        "rounds": args.rounds,
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=2))
    print(f"{'dead groups':>12}  {'dropped':>8}  {'kept':>8}   (time of an update, against none dead)")
    for share in SHARES:
        print(f"{share:>12.0%}  {ratios[str(share)]:>8.2f}  {kept[str(share)]:>8.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        draw_plot(args.plot, ratios, kept)


def draw_plot(path: str, ratios: dict[str, float], kept: dict[str, float]) -> None:
    """Draws both curves over the share of dead groups."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    x = [100 * share for share in SHARES]
    axes.plot(x, list(kept.values()), "o--", color="#888888", label="rows kept")
    axes.plot(x, list(ratios.values()), "o-", color="#1f6f8b", label="dead rows dropped")
    axes.plot(x, [1 - share for share in SHARES], ":", color="#bbbbbb", label="share of live rows")
    axes.set(
        xlabel="groups with zero advantage, %", ylabel="time of an update, none dead = 1", ylim=(0, None)
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
