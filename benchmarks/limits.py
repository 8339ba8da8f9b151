"""Does grpokit keep the limits that it sets itself in seconds? Each command runs five times, and the median counts.

    python benchmarks/limits.py                      what has a limit of its own
    python benchmarks/limits.py --against HEAD~3     also what may not be slower than that commit
    python benchmarks/limits.py --against HEAD~3 --clock cpu     on a machine that is shared

Commands take turns, so that a slow minute hits all of them. Those that are measured against a commit run there too,
in the same turns. A large file of data is measured against a small one: how much later a run of one step ends, and how
much more memory it takes. To the limit of such a ratio comes the noise: how far the older commit's own times lie apart, which
is half the distance of their quartiles, as a share of the median. `watch.py` and `recording.py` have limits of their own.
Exit code: 0 where all limits are kept, 1 where one is broken, 2 for wrong usage. A further limit is a row of LIMITS.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from same.versions import ROOT, is_commit, title, versions


@dataclass(frozen=True)
class Limit:
    """A command of Python's, and what it may take: seconds, a ratio to the seconds of the older commit, or more than another."""

    name: str
    arguments: tuple[str, ...]  # after `python`; FOLDER is that of the data
    seconds: float | None = None
    ratio: float | None = None
    base: str = ""  # the name of another command, than which it may take
    later: float = 0.0  # so many seconds more
    mebibytes: float = 0.0  # and so much more memory


@dataclass(frozen=True)
class Run:
    """One run of a command: its seconds, and the most memory of its process in MiB."""

    seconds: float
    mebibytes: float


ROWS = 1_000  # of a small file
MANY_ROWS = 1_000_000  # of a large one
ROW = 500  # bytes of a row


def one_step(rows: int) -> tuple[str, ...]:
    """Arguments of a run of one step on so many rows."""
    return (
        *("-m", "grpokit", "train", "--model", "FOLDER/model", "--dataset", f"FOLDER/{rows}.jsonl"),
        *(
            "--reward_funcs",
            "length",
            "--max_steps",
            "1",
            "--prompts_per_step",
            "4",
            "--num_generations",
            "2",
        ),
        *("--max_completion_length", "4", "--num_threads", "1", "--output_dir", "FOLDER/run"),
    )


LIMITS = (
    Limit(f"one step on {ROWS:,} rows", one_step(ROWS)),
    Limit(
        f"one step on {MANY_ROWS:,} rows",
        one_step(MANY_ROWS),
        base=f"one step on {ROWS:,} rows",
        later=10.0,
        mebibytes=1024.0,
    ),
    Limit('python -c "import grpokit"', ("-c", "import grpokit"), seconds=0.2),
    Limit("grpokit --help", ("-m", "grpokit", "--help"), ratio=1.05),
)


@dataclass(frozen=True)
class Finding:
    """The measurement of a limit in words, and if it is kept (None: not measured)."""

    limit: str
    measured: str
    kept: bool | None


def wall() -> float:
    """Seconds by the clock."""
    return time.perf_counter()


def cpu() -> float:
    """Seconds that the CPU worked for the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLOCKS: dict[str, Callable[[], float]] = {"wall": wall, "cpu": cpu}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--against", metavar="COMMIT", help="the commit that ratios are to")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each command (default: 5)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that is shared")
    return parser


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    if args.against and not is_commit(args.against):
        parser.error(f"--against {args.against}: is no commit of this repository")
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="limits-") as folder:
        commits = {"old": args.against} if args.against else {}
        with versions(commits, Path(folder)) as code:
            make_data(Path(folder))
            data = Path(folder)
            done = measure({**code, "new": ROOT / "src"}, args.runs, CLOCKS[args.clock], console, data)
    findings = [judge(limit, done) for limit in LIMITS]
    table = Table("", "limit", f"measured, {args.clock} clock", "ok")
    words = {True: "[green]yes[/]", False: "[red]no[/]", None: "not measured"}
    for limit, finding in zip(LIMITS, findings, strict=True):
        table.add_row(limit.name, finding.limit, finding.measured, words[finding.kept])
    console.print(table)
    if args.against:
        console.print(f"ratios are to {title(args.against)}", markup=False, soft_wrap=True)
    return int(any(finding.kept is False for finding in findings))


def make_data(folder: Path) -> None:
    """Write a tiny model, and files of few and of many rows."""
    sys.path.append(str(ROOT / "tests"))
    from helpers.tiny import make_model_dir

    make_model_dir(folder / "model")
    for count in (ROWS, MANY_ROWS):
        with (folder / f"{count}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                row = json.dumps({"prompt": f"{number % 9000 + 1000}=", "number": number, "pad": ""})
                file.write(row.replace('"pad": ""', f'"pad": "{"x" * (ROW - len(row) - 1)}"') + "\n")


def run(arguments: Sequence[str], environment: dict[str, str], clock: Callable[[], float]) -> Run:
    """Run Python once. Raises RuntimeError with what it said where it fails."""
    start = clock()
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)}\n{said.read().decode(errors='replace')[-2000:]}")
    return Run(clock() - start, used.ru_maxrss / 1024)


def measure(
    code: dict[str, Path], runs: int, clock: Callable[[], float], console: Console, data: Path
) -> dict[tuple[str, str], list[Run]]:
    """Run all commands in turns; returns (name of the limit, version) → each run but the first."""
    kinds = [(limit, side) for limit in LIMITS for side in code if side == "new" or limit.ratio is not None]
    done: dict[tuple[str, str], list[Run]] = {(limit.name, side): [] for limit, side in kinds}
    turns = [kind for _ in range(runs + 1) for kind in kinds]
    for limit, side in track(turns, "measuring", console=console, transient=True):
        environment = {**os.environ, "PYTHONPATH": str(code[side])}
        arguments = [word.replace("FOLDER", str(data)) for word in limit.arguments]
        done[limit.name, side].append(run(arguments, environment, clock))
        shutil.rmtree(data / "run", ignore_errors=True)
    return {kind: each[1:] for kind, each in done.items()}  # the first run writes Python's cache


def judge(limit: Limit, done: dict[tuple[str, str], list[Run]]) -> Finding:
    """Hold the medians against a limit."""
    seconds = {kind: [each.seconds for each in runs] for kind, runs in done.items()}
    memory = {kind: statistics.median(each.mebibytes for each in runs) for kind, runs in done.items()}
    new = statistics.median(seconds[limit.name, "new"])
    if limit.base:
        later = new - statistics.median(seconds[limit.base, "new"])
        more = memory[limit.name, "new"] - memory[limit.base, "new"]
        return Finding(
            f"{limit.later:g} s later, {limit.mebibytes:,.0f} MiB more",
            f"{later:.2f} s later, {more:,.0f} MiB more",
            later <= limit.later and more <= limit.mebibytes,
        )
    if limit.seconds is None and limit.ratio is None:
        return Finding("none: others are held against it", f"{new:.2f} s", None)
    if limit.seconds is not None:
        return Finding(f"less than {limit.seconds:g} s", f"{new:.3f} s", new < limit.seconds)
    assert limit.ratio is not None
    old_times = seconds.get((limit.name, "old"))
    if old_times is None:
        return Finding(f"{limit.ratio:g} × --against", f"{new:.3f} s", None)
    old, noise = statistics.median(old_times), spread(old_times)
    return Finding(
        f"{limit.ratio:g} × {old:.3f} s, and {noise:.1%} of noise",
        f"{new:.3f} s, {new / old:.3f} ×",
        new / old <= limit.ratio + noise,
    )


def spread(times: list[float]) -> float:
    """Half the distance of the quartiles, as a share of the median."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / 2 / middle


if __name__ == "__main__":
    sys.exit(main())
