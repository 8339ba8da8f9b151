"""Does a change of the code change a number? Both versions train in many ways, and what they write must be the same bytes.

    python benchmarks/same_bytes.py HEAD~3                 the working tree as it stands, against that commit
    python benchmarks/same_bytes.py v1 v2                  one commit against another
    python benchmarks/same_bytes.py HEAD --only demo 'loss-*'
    python benchmarks/same_bytes.py HEAD --demo_steps 150  with the whole demo

The old version makes the task: a tiny model and its data. Then both run each case, with the same command line, model and
interpreter, in directories of the same form. Compared are metrics.jsonl and evaluations.jsonl without times
and without figures that only the new version has,
completions.jsonl, and every file in final/. A run that is killed and resumed must also end as one that is not.
Needs a system that can fork: Linux or macOS. Exit code: 0 where all agree, 1 where something differs, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from same.cases import Case, all_cases
from same.runs import import_what_is_slow
from same.schedule import SIDES, Outcome, run_all
from same.versions import is_commit, losses_of, make_task, title, versions

console = Console(highlight=False)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("old", nargs="?", metavar="OLD", help="a commit")
    parser.add_argument(
        "new", nargs="?", metavar="NEW", help="another (default: the working tree as it stands)"
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="these cases; * is any text")
    parser.add_argument("--list", action="store_true", help="show the cases and their flags, and run none")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs side by side (default: 2)")
    parser.add_argument(
        "--demo_steps", type=int, default=20, metavar="N", help="steps of the demo (default: 20; all: 150)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave task, runs and logs in this new directory"
    )
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of the runs that were meant to change, such as final/README.md",
    )
    return parser


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    check(args, parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that worktrees are removed
    commits = {"old": args.old, "new": args.new}
    with tempfile.TemporaryDirectory(prefix="same_bytes-") as folder, versions(commits, Path(folder)) as code:
        place = (args.keep or Path(folder) / "runs").resolve()
        place.mkdir(parents=True, exist_ok=True)
        with doing("importing torch"):
            import_what_is_slow()
            cases = all_cases(losses_of(code["old"], place), args.demo_steps)
        for name in args.only:
            if not fnmatch.filter([case.name for case in cases], name):
                parser.error(f"--only {name}: no such case; --list shows them all")
        chosen = [case for case in cases if any(fnmatch.fnmatch(case.name, name) for name in args.only)]
        if args.list:
            return show_cases(chosen)
        for side, commit in commits.items():
            console.print(f"{side}: {title(commit)}", markup=False, soft_wrap=True)
        began = time.monotonic()
        with doing("the old version makes the task"):
            make_task(code["old"], place)
        outcomes = run_all(chosen, code, place, args.jobs, console, args.ignore)
        show_outcomes(outcomes, time.monotonic() - began)
    if args.keep:
        console.print(f"task, runs and logs: {place}")
    return int(any(outcome.verdict != "ok" for outcome in outcomes))


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with exit code 2 where the arguments cannot work."""
    if args.old is None and not args.list:
        parser.error("name the commit to compare with: same_bytes.py OLD [NEW]")
    if args.jobs < 1 or args.demo_steps < 1:
        parser.error("--jobs and --demo_steps must be at least 1")
    if args.keep and args.keep.exists() and (not args.keep.is_dir() or any(args.keep.iterdir())):
        parser.error(f"--keep {args.keep}: is not empty; name a new directory")
    for commit in filter(None, (args.old, args.new)):
        if not is_commit(commit):
            parser.error(f"{commit}: is no commit of this repository")


def doing(text: str):
    """A spinner on a terminal; nothing elsewhere."""
    return console.status(text) if console.is_terminal else nullcontext()


def show_cases(cases: Sequence[Case]) -> int:
    """Print the cases and their command lines."""
    table = Table("case", "ranks", "grpokit ...", title_justify="left")
    for case in cases:
        text = " ".join([case.command, case.flags]) + ("  (killed, resumed)" if case.killed else "")
        table.add_row(case.name, str(case.ranks), text)
    console.print(table)
    return 0


def show_outcomes(outcomes: Sequence[Outcome], seconds: float) -> None:
    """Print the table and the sum of it."""
    table = Table("case", "", "CPU seconds, old", "new", "first difference")
    for outcome in outcomes:
        colour = "green" if outcome.verdict == "ok" else "red"
        times = [f"{outcome.seconds[side]:.1f}" for side in SIDES]
        table.add_row(
            outcome.case.name, f"[{colour}]{outcome.verdict}[/]", *times, escape(outcome.difference)
        )
    console.print(table)
    agree = sum(outcome.verdict == "ok" for outcome in outcomes)
    console.print(f"{agree} of {len(outcomes)} cases agree; {seconds:.0f} s")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
