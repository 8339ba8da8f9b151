"""Running the cases of both versions side by side, and judging each as soon as both of its runs have ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .cases import RESUMED, RUN, Case
from .compare import compare
from .runs import fork, run_case

SIDES = ("old", "new")
LIMIT = 1800.0  # seconds for one run


@dataclass(eq=False)
class Outcome:
    """The outcome of a case: exit codes, CPU time, and the first difference."""

    case: Case
    codes: dict[str, int] = field(default_factory=dict)  # exit codes by side
    seconds: dict[str, float] = field(default_factory=dict)  # of CPU time
    difference: str = ""

    @property
    def verdict(self) -> str:
        """One word or two for the table."""
        if any(self.codes.values()):
            return "failed in " + " and ".join(side for side in SIDES if self.codes.get(side))
        return "differs" if self.difference else "ok"


@dataclass(frozen=True)
class Job:
    """One side of a case, under way."""

    outcome: Outcome
    side: str
    began: float = field(default_factory=time.monotonic)


class Board:
    """A progress bar with the time left on a terminal, a line for each case elsewhere."""

    def __init__(self, cases: int, console: Console) -> None:
        self.total, self.console, self.said, self.began = cases, console, 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        # The display gets no thread of its own: a process with several threads must not be forked.
        quiet = {"auto_refresh": False, "redirect_stdout": False, "redirect_stderr": False, "transient": True}
        self.bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, **quiet)
        self.task = self.bar.add_task("", total=cases * len(SIDES))

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, running: Sequence[Job], ended: int) -> None:
        """Name what runs, and count the runs that have ended since the last call."""
        names = " ".join(dict.fromkeys(job.outcome.case.name for job in running))
        self.bar.update(self.task, advance=ended, description=f"{names:<44.44}")
        if self.console.is_terminal:
            self.bar.refresh()

    def tell(self, outcome: Outcome) -> None:
        """Say that a case is done; on a terminal, only where it does not agree."""
        self.said += 1
        if not self.console.is_terminal or outcome.verdict != "ok":
            left = (time.monotonic() - self.began) / self.said * (self.total - self.said)
            place = f"{self.said}/{self.total}  left {int(left) // 60}:{int(left) % 60:02d}"
            text = f"{place}  {outcome.case.name}: {outcome.verdict}  {outcome.difference}"
            self.console.print(text.rstrip(), markup=False, soft_wrap=True)


def run_all(
    cases: Sequence[Case],
    code: dict[str, Path],
    place: Path,
    jobs: int,
    console: Console,
    ignored: Sequence[str] = (),
) -> list[Outcome]:
    """Run every case on both sides, `jobs` processes at once, and compare each case once both sides have ended.

    `ignored`: patterns of files that were meant to change.
    """
    outcomes = [Outcome(case) for case in cases]
    waiting = [(outcome, side) for outcome in outcomes for side in SIDES]
    running: dict[int, Job] = {}  # by process id
    with Board(len(cases), console) as board:
        try:
            while waiting or running:
                busy = sum(job.outcome.case.ranks for job in running.values())
                if waiting and (not running or busy + waiting[0][0].case.ranks <= jobs):
                    outcome, side = waiting.pop(0)
                    running[start(outcome.case, code[side], place / side)] = Job(outcome, side)
                    continue
                ended = reap(running)
                for outcome in dict.fromkeys(ended):
                    if len(outcome.codes) == len(SIDES):
                        outcome.difference = judge(outcome, place, ignored)
                        board.tell(outcome)
                board.show(list(running.values()), len(ended))
                time.sleep(0.05)
        finally:
            stop(running)
    return outcomes


def start(case: Case, code: Path, place: Path) -> int:
    """Start one side of a case in a directory of its own, and return its process id."""
    folder = place / case.name
    folder.mkdir(parents=True)
    (folder / "task").symlink_to(place.parent / "task")

    def run() -> int:
        os.chdir(folder)
        return run_case(case, code)

    return fork(run, folder / "log.txt", leads=True)


def reap(running: dict[int, Job]) -> list[Outcome]:
    """Take out the jobs that have ended, and return their outcomes with exit code and seconds filled in."""
    ended = []
    for child, job in list(running.items()):
        if time.monotonic() - job.began > LIMIT:
            os.killpg(child, signal.SIGKILL)
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            del running[child]
            job.outcome.codes[job.side] = os.waitstatus_to_exitcode(status)
            job.outcome.seconds[job.side] = usage.ru_utime + usage.ru_stime
            ended.append(job.outcome)
    return ended


def stop(running: dict[int, Job]) -> None:
    """End what is still under way: first by SIGTERM, on which a launcher ends its ranks too."""
    for signum, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 1.0)):
        for child in running:
            with suppress(ProcessLookupError):
                os.killpg(child, signum)
        deadline = time.monotonic() + patience
        while running and time.monotonic() < deadline:
            reap(running)
            time.sleep(0.05)


def judge(outcome: Outcome, place: Path, ignored: Sequence[str] = ()) -> str:
    """The first difference of a case, or the last line of what a run said that failed; empty where all agree."""
    folders = {side: place / side / outcome.case.name for side in SIDES}
    for side, code in outcome.codes.items():
        if code:
            said = (folders[side] / "log.txt").read_text(errors="replace").split("\n")
            return next((line for line in reversed(said) if line.strip()), f"exit code {code}")
    try:
        for name in outcome.case.outputs:
            found = compare(folders["old"] / name, folders["new"] / name, name, ignored)
            if found:
                return str(found)
        for side in SIDES if outcome.case.killed else ():
            found = compare(folders[side] / RUN, folders[side] / RESUMED, RESUMED, ignored)
            if found:
                return f"{side} version, not killed → {found}"
    except (OSError, ValueError) as error:
        return f"cannot be compared: {error}"
    return ""
