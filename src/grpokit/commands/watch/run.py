"""A run that is watched: what its files say so far, and how it is getting on."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ...runs.advice import Advice, Adviser
from ...runs.report.data import read_config
from ...runs.report.markup import seconds
from ...runs.token_states import FOLDER as TOKENS
from .follow import inside
from .index import CompletionIndex
from .table import Table, TableRun, table_run
from .tokens import recorded_steps

RECENT = 20  # steps over which the usual time of a step is taken
PATIENCE = 60.0, 5.0  # a run is quiet after so many seconds, and so many times its usual step
AFTER_FINAL = 60.0  # seconds; metrics that are newer than final/ by more are of a run that was resumed
READ_OF_ERROR = 1 << 16  # bytes at the end of error.txt


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Example:
        >>> status = Status("quiet", "no new step for 12 min; a step takes 20 s", 40, 100, 1200.0)
    """

    state: Literal["waiting", "running", "quiet", "finished", "failed"]
    text: str
    step: int
    max_steps: int | None
    seconds_left: float | None


class WatchedRun:
    """The files of a run, read as far as they are written. Callers hold `lock` while they use it.

    Example: `WatchedRun("demo", Path("runs/demo")).status().text`
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.lock = threading.Lock()
        self.metrics = Table(folder, "metrics.jsonl")
        self.evaluations = Table(folder, "evaluations.jsonl")
        self.completions = CompletionIndex(folder)
        self.config: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self.token_steps: list[int] = []
        self._read_at: dict[str, int] = {}  # file → its date when it was read
        self._problems: dict[str, str] = {}
        self._began = time.time()
        self._adviser: Adviser | None = None
        # The versions of the metrics and of the options that the adviser has seen, and how many steps.
        self._advised = 0, 0, 0
        self._changed = 0.0  # when a change was seen; 0: not since the page is served

    def refresh(self) -> None:
        """Reads what is new in the small files. Completions are found when they are asked for."""
        before = len(self.metrics), len(self.evaluations), self.metrics.file.restarts
        self._try("metrics.jsonl", self.metrics.refresh)
        self._try("evaluations.jsonl", self.evaluations.refresh)
        if before[:2] != (0, 0) and before != self._counts():
            self._changed = time.time()
        self._if_new("config.yaml", self._read_config)
        self._if_new("about.json", self._read_about)
        self._if_new(TOKENS, self._list_tokens)

    def _counts(self) -> tuple[int, int, int]:
        return len(self.metrics), len(self.evaluations), self.metrics.file.restarts

    def _try(self, name: str, read: Callable[[], None]) -> None:
        """Reads a file, and remembers what is wrong with it."""
        self._problems.pop(name, None)
        try:
            read()
        except OSError as error:
            self._problems[name] = f"{name}: can't be read: {error.strerror}"
        except ValueError as error:
            self._problems[name] = " ".join(str(error).split())

    def _if_new(self, name: str, read: Callable[[], None]) -> None:
        """Reads a file or a folder again if it has changed."""
        date = self._date(name)
        if date != self._read_at.get(name, 0):
            self._read_at[name] = date
            self._try(name, read)

    def _date(self, name: str) -> int:
        """Returns when a file was changed, in nanoseconds; 0 where there is none that may be read."""
        return stat.st_mtime_ns if (stat := self._stat(name)) else 0

    def _stat(self, name: str) -> os.stat_result | None:
        found: list[os.stat_result] = []

        def look() -> None:
            path = inside(self.folder, name)
            found.extend([path.stat()] if path else [])

        self._try(f"look at {name}", look)
        return found[0] if found else None

    def _text(self, name: str) -> str:
        path = inside(self.folder, name)
        return path.read_text(encoding="utf-8", errors="replace") if path else ""

    def _read_config(self) -> None:
        path = inside(self.folder, "config.yaml")
        self.config = dict(read_config(path)) if path else {}

    def _read_about(self) -> None:
        told = json.loads(self._text("about.json") or "{}")
        self.about = told if isinstance(told, dict) else {}

    def _list_tokens(self) -> None:
        self.token_steps = recorded_steps(self.folder)

    # ------------------------------------------------------------------ what is said of it

    def problems(self) -> list[str]:
        """Returns a sentence for each file or line that could not be read."""
        return [
            *self._problems.values(),
            *self.metrics.problems,
            *self.evaluations.problems,
            *self.completions.problems,
        ]

    def tables(self) -> TableRun:
        """Returns the run for the report's panels and cards."""
        return table_run(self.folder, self.config, self.metrics, self.evaluations)

    def advice(self) -> list[Advice]:
        """Returns the advice about the run so far. Only the steps since the last call are looked at."""
        version = self.metrics.cuts, self._read_at.get("config.yaml", 0)
        if self._adviser is None or self._advised[:2] != version:
            self._adviser = Adviser(self.config)
            self._adviser.start(self.metrics, self.tables().evaluations)
        else:
            for row in self.metrics[self._advised[2] :]:
                self._adviser.add(row)
        self._advised = *version, len(self.metrics)
        return self._adviser.advice()

    def shown_token_steps(self) -> list[int]:
        """Returns the steps whose tokens were recorded. Files of later steps are left over from before a resume."""
        last = self.metrics.steps[-1] if self.metrics else 0
        return [step for step in self.token_steps if step <= last]

    def versions(self) -> dict[str, str]:
        """Returns view → a text that changes with what it shows."""
        counts = *self._counts(), self.metrics.steps[-1] if self.metrics else 0
        dates = [self._date(name) for name in ("config.yaml", "about.json", "error.txt", "final")]
        size = stat.st_size if (stat := self._stat("completions.jsonl")) else 0
        return {
            "overview": "-".join(map(str, (*counts, *dates))),
            "completions": str(size),
            "tokens": f"{self._date(TOKENS)}-{counts[-1]}",
        }

    def step_seconds(self) -> float | None:
        """Returns the usual time of a recent step."""
        recent = self.metrics.series("time/step")[1][-RECENT:]
        return median(recent) if recent else None

    def status(self) -> Status:
        """Tells how the run is getting on."""
        step = self.metrics.steps[-1] if self.metrics else 0
        # With --num_train_epochs, about.json alone says how many steps that is.
        wanted = self.about.get("max_steps") or self.config.get("max_steps")
        most = wanted if isinstance(wanted, int) and wanted > 0 else None
        each = self.step_seconds()
        written, failed = self._date("metrics.jsonl") / 1e9, self._date("error.txt") / 1e9
        final = self._date("final") / 1e9
        # What failed after final/ was written, such as the report, was not the training.
        has_ended = 0 < final <= failed + AFTER_FINAL
        if failed > 0 and failed >= written and not has_ended:
            lines = self._error().strip().splitlines()
            return Status("failed", lines[-1] if lines else "error.txt is empty", step, most, None)
        if final > 0 and written <= final + AFTER_FINAL:
            return Status("finished", "finished", step, most, None)
        if not self.metrics:
            return Status("waiting", "waiting for the first step", 0, most, None)
        left = max(0, most - step) * each if most and each is not None else None
        since = time.time() - (self._changed or min(written, self._began))
        if since > max(PATIENCE[0], PATIENCE[1] * (each or 0)):
            usual = f"; a step takes {seconds(each)}" if each is not None else ""
            return Status("quiet", f"no new step for {_minutes(since)}{usual}", step, most, left)
        return Status("running", "running", step, most, left)

    def _error(self) -> str:
        """Returns the end of error.txt."""
        path = inside(self.folder, "error.txt")
        if path is None:
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - READ_OF_ERROR))
            return file.read().decode("utf-8", "replace")


def _minutes(value: float) -> str:
    """Writes a waiting time in whole minutes, hours or days, so that the page need not count seconds."""
    minutes = int(value // 60)
    if minutes < 120:
        return f"{max(1, minutes)} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"
