"""How fast does `grpokit watch` answer about a long run, and how much memory does its server take?

    python benchmarks/watch.py                          500 steps × 64 completions of 1,024 tokens
    python benchmarks/watch.py --steps 50 --times 5     a short form

Makes a run of that size in a temporary folder (about 400 MB, deleted at the end), starts the command in a process of its own
and asks for each view. "First" is the answer that has to read the files; the others are medians over random steps. A step was
written before each of them, as a run does. Needs Linux: the peak of the memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.watched import WORDS, append_step, make_watched_run, some_groups, write_tokens

GROUPS, GENERATIONS, LENGTH = 8, 8, 1024
TOKEN_FILES = 128  # 256 MiB of them, where a run stops keeping more
LIMIT_MS, LIMIT_MB = 300, 500


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="steps of the run (default: 500)")
    parser.add_argument(
        "--times", type=int, default=20, metavar="N", help="answers of each view (default: 20)"
    )
    return parser.parse_args()


def make_long_run(folder: Path, steps: int) -> None:
    """Writes a run of 8 × 8 completions of 1,024 tokens in each step."""
    make_watched_run(folder, steps + 1000, steps)
    rng = random.Random(0)
    pool = rng.choices(WORDS, k=100_000)
    with (folder / "completions.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            for group in some_groups(step, GROUPS, GENERATIONS, words=2):
                starts = [rng.randrange(len(pool) - LENGTH) for _ in range(GENERATIONS)]
                group["completions"] = [" ".join(pool[start : start + LENGTH]) for start in starts]
                group["lengths"] = [LENGTH] * GENERATIONS
                file.write(json.dumps(group) + "\n")
    for path in (folder / "tokens").iterdir():
        path.unlink()
    for step in token_steps(steps):
        write_tokens(folder, step, num=GROUPS * GENERATIONS, length=LENGTH)


def token_steps(steps: int) -> range:
    """Returns the steps whose tokens are recorded, evenly spaced."""
    return range(1, steps + 1, max(1, -(-steps // TOKEN_FILES)))


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Yields the page's address and the server's process."""
    command = [sys.executable, "-m", "grpokit", "watch", str(folder), "--port", "0"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        print(f"serves after {time.perf_counter() - started:.2f} s")
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


def peak_mb(pid: int) -> float:
    """Returns the most memory that a process has held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(folder: Path, steps: int, times: int) -> bool:
    """Prints the time of each view and the server's peak memory. Returns whether both are within their limits."""
    rng = random.Random(1)
    recorded = token_steps(steps)
    views: dict[str, Callable[[], str]] = {
        "changes": lambda: "changes",
        "overview": lambda: "overview?run=run",
        "completions of a step": lambda: f"completions?run=run&step={rng.randint(1, steps)}",
        "completions, filtered": lambda: (
            f"completions?run=run&step={rng.randint(1, steps)}&text=carry&sort=length"
        ),
        "a completion": lambda: f"completion?run=run&step={rng.randint(1, steps)}&group=3&generation=4",
        "recorded tokens": lambda: f"recorded?run=run&step={rng.choice(recorded)}",
        "tokens of a completion": lambda: f"tokens?run=run&step={rng.choice(recorded)}&place=40",
        "several runs": lambda: "compare?run=run&run=run",
    }
    slowest, step = 0.0, steps
    with (
        serving(folder) as (address, pid),
        httpx.Client(base_url=f"{address}api/", trust_env=False) as client,
    ):
        print(f"{'view':24} {'first':>8} {'median':>8} {'most':>8}   answer")
        for name, question in views.items():
            taken = []
            for _ in range(times + 1):
                step += 1
                append_step(folder, step, steps + 1000)
                started = time.perf_counter()
                response = client.get(question())
                taken.append(1000 * (time.perf_counter() - started))
                response.raise_for_status()
            first, rest = taken[0], taken[1:]
            slowest = max(slowest, statistics.median(rest))
            size = len(response.content) / 1e3
            print(
                f"{name:24} {first:5.0f} ms {statistics.median(rest):5.0f} ms {max(rest):5.0f} ms   {size:,.0f} kB"
            )
        memory = peak_mb(pid)
    print(
        f"slowest median {slowest:.0f} ms (limit {LIMIT_MS}), peak memory {memory:.0f} MB (limit {LIMIT_MB})"
    )
    return slowest <= LIMIT_MS and memory <= LIMIT_MB


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "run"
        make_long_run(folder, given.steps)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(
            f"{given.steps} steps × {GROUPS * GENERATIONS} completions of {LENGTH:,} tokens: {size / 1e6:,.0f} MB"
        )
        return 0 if measure(folder, given.steps, given.times) else 1


if __name__ == "__main__":
    sys.exit(main())
