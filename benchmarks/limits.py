"""Does grpokit keep the limits that it sets itself in seconds? Each command runs five times, and the median counts.

    python benchmarks/limits.py                      what has a limit of its own
    python benchmarks/limits.py --against HEAD~3     also what may not be slower than that commit
    python benchmarks/limits.py --against HEAD~3 --clock cpu     on a machine that is shared

Commands take turns, so that a slow minute hits all of them. Those that are measured against a commit run there too,
in the same turns. To the limit of such a ratio comes the noise: how far the older commit's own times lie apart, which
is half the distance of their quartiles, as a share of the median.
Exit code: 0 where all limits are kept, 1 where one is broken, 2 for wrong usage. A further limit is a row of LIMITS.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from same.versions import ROOT, is_commit, title, versions


@dataclass(frozen=True)
class Limit:
    """A command of Python's, and what it may take: seconds, or a ratio to the seconds of the older commit."""

    name: str
    arguments: tuple[str, ...]  # after `python`
    seconds: float | None = None
    ratio: float | None = None


LIMITS = (
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
            seconds = measure({**code, "new": ROOT / "src"}, args.runs, CLOCKS[args.clock], console)
    findings = [judge(limit, seconds) for limit in LIMITS]
    table = Table("", "limit", f"measured, {args.clock} clock", "ok")
    words = {True: "[green]yes[/]", False: "[red]no[/]", None: "not measured"}
    for limit, finding in zip(LIMITS, findings, strict=True):
        table.add_row(limit.name, finding.limit, finding.measured, words[finding.kept])
    console.print(table)
    if args.against:
        console.print(f"ratios are to {title(args.against)}", markup=False, soft_wrap=True)
    return int(any(finding.kept is False for finding in findings))


def measure(
    code: dict[str, Path], runs: int, clock: Callable[[], float], console: Console
) -> dict[tuple[str, str], list[float]]:
    """Run all commands in turns; returns (name of the limit, version) → seconds of each run but the first."""
    kinds = [(limit, side) for limit in LIMITS for side in code if side == "new" or limit.ratio is not None]
    seconds: dict[tuple[str, str], list[float]] = {(limit.name, side): [] for limit, side in kinds}
    turns = [kind for _ in range(runs + 1) for kind in kinds]
    for limit, side in track(turns, "measuring", console=console, transient=True):
        start = clock()
        environment = {**os.environ, "PYTHONPATH": str(code[side])}
        subprocess.run([sys.executable, *limit.arguments], env=environment, check=True, capture_output=True)
        seconds[limit.name, side].append(clock() - start)
    return {kind: times[1:] for kind, times in seconds.items()}  # the first run writes Python's cache


def judge(limit: Limit, seconds: dict[tuple[str, str], list[float]]) -> Finding:
    """Hold the medians against a limit."""
    new = statistics.median(seconds[limit.name, "new"])
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
