"""Which loss learns best? Two offline tasks, five seeds, by `grpokit compare`.

    python benchmarks/losses.py --output_dir runs/which-loss --jobs 2

Sorting digits at 60 steps for all losses, and the tiny chat model's arithmetic at 60 steps for the six losses that most trainers
have. Every loss has its default options, and all have the same learning rate, batch and seeds. Each is compared with grpo by the
paired t-test, corrected by Holm. It takes about an hour and a quarter of one core, less than 40 minutes on two.
A comparison that was stopped goes on; a finished run isn't made again. Writes TASK/compare.html, and table.md with the figures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from grpokit.commands.compare.outcome import Outcome, compare_runs
from grpokit.commands.compare.statistics import Pair
from grpokit.commands.compare.summary import verdict
from grpokit.losses import LOSSES

MAKE_CHAT = Path(__file__).resolve().parents[1] / "examples" / "make_tiny_chat_model.py"
BASELINE = "grpo"
SIX = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
COMMON = {
    "prompts_per_step": 32,
    "num_generations": 8,
    "num_iterations": 2,  # with one update a step every ratio is 1, and most losses are the same
    "lr_scheduler_type": "linear",
    "max_steps": 60,
    "eval_samples": 256,
    "eval_generations": 8,
    "eval_steps": 20,
    "num_threads": 1,
}


class Task(NamedTuple):
    """A task: how it is made, how it is trained, and the losses that are compared on it."""

    make: tuple[str, ...]  # a command of Python's, without --output_dir
    options: dict[str, object]
    losses: tuple[str, ...]


TASKS = {
    "sort_digits": Task(
        ("-m", "grpokit", "task", "sort_digits"),
        {
            "reward_funcs": ["exact_match"],
            "max_completion_length": 7,
            "learning_rate": 6.0e-4,
            "adam_beta2": 0.95,
        },
        tuple(LOSSES),
    ),
    "arithmetic": Task(
        (str(MAKE_CHAT), "--eval_rows", "256"),
        {"reward_funcs": ["accuracy"], "max_completion_length": 24, "learning_rate": 1.0e-4},
        SIX,
    ),
}


def run(*words: str) -> int:
    """Runs Python with these words in the present directory."""
    return subprocess.run([sys.executable, *words]).returncode


def compare(name: str, task: Task, seeds: int, jobs: int, steps: int) -> int:
    """Makes a task where it isn't there, and compares its losses. Returns the exit code."""
    import yaml

    folder = Path("tasks") / name
    if not (folder / "eval.jsonl").is_file() and run(*task.make, "--output_dir", str(folder)):
        return 1
    data = {
        "model": f"{folder}/model",
        "dataset": f"{folder}/train.jsonl",
        "eval_dataset": f"{folder}/eval.jsonl",
    }
    base = Path(f"{name}.yaml")
    base.write_text(yaml.safe_dump({**data, **COMMON, **task.options, "max_steps": steps}, sort_keys=False))
    return run(
        *("-m", "grpokit", "compare", "--config", str(base), "--vary", f"loss_type={','.join(task.losses)}"),
        *("--seeds", str(seeds), "--jobs", str(jobs), "--baseline", f"loss_type={BASELINE}"),
        *("--output_dir", f"runs/{name}", "--output", f"{name}.html"),
    )


def table(outcome: Outcome) -> str:
    """Returns the figures of a comparison as a table in Markdown, the best first."""
    pairs = {pair.first: pair for pair in outcome.statistics.pairs}
    lines = ["| loss | mean | middle half | difference to grpo | p, Holm | |", "|---|---|---|---|---|---|"]
    for single in sorted(outcome.statistics.singles, key=lambda single: -single.mean):
        lines.append(
            f"| `{single.name}` | {single.mean:.3f} | {single.middle:.3f} | {_difference(pairs.get(single.name))} |"
        )
    return "\n".join(lines)


def _difference(pair: Pair | None) -> str:
    if pair is None or pair.adjusted is None:
        return "| | "
    interval = "" if pair.low != pair.low else f" ({pair.low:+.3f} to {pair.high:+.3f})"
    return f"{pair.difference:+.3f}{interval} | {pair.adjusted:.3f} | {'differs' if pair.different else ''}"


def main() -> int:
    """Compares, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", default="runs/which-loss")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    os.chdir(args.output_dir)  # so that the files name no directory of this machine
    written: list[str] = []
    for name in args.tasks:
        began = time.monotonic()
        if code := compare(name, TASKS[name], args.seeds, args.jobs, args.steps):
            return code
        outcome = compare_runs([f"runs/{name}"], baseline=BASELINE)
        written += [f"## {name}", "", verdict(outcome), "", table(outcome), ""]
        print(f"{name}: {(time.monotonic() - began) / 60:.0f} min")
    Path("table.md").write_text("\n".join(written), encoding="utf-8")
    print("\n".join(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
