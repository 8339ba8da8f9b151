"""Trains the runs of a comparison, each in a process of its own, one after the other or several at a time."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ...common.console import counting, say
from ...config.yaml import to_yaml
from .plan import PlannedRun, last_step

LOOK_EVERY = 0.1  # seconds between two looks at the processes
COUNT_EVERY = 1.0  # seconds between two looks at their metrics
LOCK = "compare.lock"
PATIENCE = 60.0  # seconds in which the runs of a comparison that was killed may write their checkpoints


@dataclass(frozen=True)
class Ended:
    """The end of training: the runs that failed, and the signal.

    Example:
        >>> Ended(failed=("dapo, seed 42: error: out of memory",), signum=0).failed
        ('dapo, seed 42: error: out of memory',)
    """

    failed: tuple[str, ...]  # "RUN: ERROR", with the last error line of its log, or else the last line
    signum: int  # the signal that ended the comparison, or 0


@dataclass
class _Slot:
    """A place for one run at a time, with its share of the machine."""

    device: str | None  # CUDA_VISIBLE_DEVICES of its runs; None: as it is
    threads: int
    run: PlannedRun | None = None
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    log_from: int = 0  # bytes that the run's log had before


def train_runs(
    runs: Sequence[PlannedRun],
    jobs: int,
    output: Path,
    check: Callable[[PlannedRun], None] = lambda run: None,
) -> Ended:
    """Trains the runs that are not finished.

    SIGINT and SIGTERM are passed on: the runs under way write a checkpoint and end. A second Ctrl-C kills them.

    Args:
        runs: all runs, in order.
        jobs: how many train at the same time.
        output: the comparison's directory.
        check: is called with each run that has finished; where it raises, the other runs stop with a checkpoint.

    Returns:
        How it ended.

    Raises:
        ValueError: another comparison is running in the directory.
    """
    waiting = [run for run in runs if not run.is_finished()]
    for run in runs:
        if run not in waiting:
            check(run)
    if not waiting:
        return Ended((), 0)
    with _locked(output) as lock:
        return _Pool(runs, waiting, _slots(jobs), lock, check).train()


class _Pool:
    """The runs under way, those that wait, and what became of the others."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        waiting: list[PlannedRun],
        slots: list[_Slot],
        lock: int | None,
        check: Callable[[PlannedRun], None],
    ) -> None:
        self.check = check
        self.runs, self.waiting, self.slots, self.lock = runs, list(waiting), slots, lock
        self.failed: list[str] = []
        self.signals: list[int] = []
        self.done = len(runs) - len(waiting)
        self.began, self.ended = time.monotonic(), 0
        self.steps = {run.name: last_step(run.directory) for run in runs}

    def train(self) -> Ended:
        """Trains until all have ended, or a signal came and those under way have stopped."""
        steps = [0 if run.config.num_train_epochs else run.config.max_steps for run in self.runs]
        with _noting_signals(self._note), counting("training", sum(steps) if all(steps) else None) as show:
            counted = 0.0
            while self._busy() or (self.waiting and not self.signals):
                for slot in self.slots:
                    self._look_at(slot)
                if time.monotonic() - counted > COUNT_EVERY:
                    self._count()
                    show(sum(self.steps.values()))
                    counted = time.monotonic()
                time.sleep(LOOK_EVERY)
        return Ended(tuple(self.failed), self.signals[0] if self.signals else 0)

    def _count(self) -> None:
        for run in (slot.run for slot in self.slots if slot.run is not None):
            self.steps[run.name] = last_step(run.directory)

    def _busy(self) -> bool:
        return any(slot.process is not None for slot in self.slots)

    def _look_at(self, slot: _Slot) -> None:
        """Takes note of a run that has ended, and starts the next one."""
        if slot.process is not None and slot.process.poll() is not None:
            self._close(slot)
        if slot.process is None and self.waiting and not self.signals:
            run = slot.run = self.waiting.pop(0)
            slot.began, slot.log_from = time.monotonic(), run.log.stat().st_size if run.log.exists() else 0
            slot.process = _start(run, slot, self.lock)

    def _close(self, slot: _Slot) -> None:
        run, process = slot.run, slot.process
        assert run is not None
        assert process is not None
        if process.stdin is not None:
            process.stdin.close()
        self._count()
        slot.run = slot.process = None
        self.ended += 1
        seconds = _minutes(time.monotonic() - slot.began)
        if run.is_finished():
            self.done += 1
            left = (time.monotonic() - self.began) / self.ended * len(self.waiting)
            rest = f", about {_minutes(left)} left" if self.waiting else ""
            say(f"{run.name}: trained in {seconds} ({self.done} of {len(self.runs)} runs{rest})")
            self.check(run)
        elif self.signals:
            say(f"{run.name}: stopped after step {last_step(run.directory)} of {run.config.max_steps}")
        else:
            why = _why(process.returncode, run.log, slot.log_from)
            self.failed.append(f"{run.name}: {why}")
            say(f"{run.name}: failed after {seconds}: {why}; its full output is in {run.log}")

    def _note(self, signum: int) -> None:
        """Asks the runs under way to stop; kills them at the second Ctrl-C."""
        again = bool(self.signals) and signum == signal.SIGINT
        self.signals.append(signum)
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.send_signal(signal.SIGKILL if again else signal.SIGTERM)


def _start(run: PlannedRun, slot: _Slot, lock: int | None) -> subprocess.Popen[bytes]:
    """Starts the training of a run: from its newest checkpoint, or from the beginning."""
    if not run.has_checkpoint():
        run.begin_again()
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    threads = (
        run.config.num_threads or slot.threads
    )  # the most: a small model is faster with one, and takes one
    config = dataclasses.replace(run.config, resume_from_checkpoint="auto")
    file = run.directory.with_name(run.directory.name + ".yaml")
    file.write_text(to_yaml(config), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if slot.device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.device
    with run.log.open("ab") as log:
        return subprocess.Popen(
            command_of(file),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C comes to this process alone, which passes it on
            pass_fds=() if lock is None else (lock,),  # the lock is held for as long as a run lives
        )


def command_of(file: Path) -> list[str]:
    """Returns the command that trains the run of a configuration file."""
    return [sys.executable, "-m", "grpokit.commands.compare.child", "--config", str(file)]


# --------------------------------------------------------------------------- the machine


def _slots(jobs: int) -> list[_Slot]:
    """Divides the machine among so many runs: cores, and GPUs where there are enough for one each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = gpus() if jobs > 1 else []
    own: list[str | None] = [*devices[:jobs]] if len(devices) >= jobs else [None] * jobs
    return [_Slot(device, max(1, cores // jobs)) for device in own]


def gpus() -> list[str]:
    """Returns the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    found = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*")]
    return sorted((name for name in found if name.isdecimal()), key=int)


@contextmanager
def _locked(output: Path) -> Iterator[int | None]:
    """Holds the directory's lock, which the runs inherit. Yields its descriptor (None on Windows, which has no such lock)."""
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a") as file:
        until, said = time.monotonic() + PATIENCE, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise ValueError(
                        f"--output_dir {output}: another comparison is running in it; wait for it, or stop it"
                    ) from error
            if not said:
                said = True
                say(
                    f"waiting for the runs of an earlier comparison in {output}, which are writing their checkpoints"
                )
            time.sleep(LOOK_EVERY)
        yield file.fileno()


@contextmanager
def _noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Calls `note` for SIGINT and SIGTERM inside the block. Off the main thread, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def noted(signum: int, frame: FrameType | None) -> None:
        note(signum)

    before = {signum: signal.signal(signum, noted) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _why(code: int, log: Path, start: int) -> str:
    """Returns the error that a run has written to its log after byte `start`, or else its last line."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    said = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    line = (errors or said or ["it printed nothing"])[-1]
    return f"{line} (killed by {signal.Signals(-code).name})" if code < 0 else line


def _minutes(seconds: float) -> str:
    from ...runs.report.markup import seconds as show

    return show(seconds)
