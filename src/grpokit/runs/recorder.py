"""Writes a run's metrics, evaluations and completions, its trackers, and the error that ended it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..parallel import World
from ..rewards import Reward
from ..types import RolloutGroup
from .completions import group_record, sample_of_groups
from .jsonl import JsonLines
from .trackers import Tracker


@dataclass
class Recorder:
    """The files and trackers of a run. Only the main rank writes; the others hold the same evaluations.

    Attributes:
        output: the run's directory.
        rewards: the reward functions, whose names head the columns of completions.jsonl.
        log_completions: groups of each step that go to completions.jsonl.
        trackers: where else the metrics go.
        evaluations: one row for each evaluation, the first before any step.
        history: the row of each step that this process has recorded.
    """

    output: Path
    rewards: tuple[Reward, ...]
    log_completions: int
    trackers: list[Tracker]
    metrics_file: JsonLines
    completions_file: JsonLines
    evaluations_file: JsonLines
    evaluations: list[dict[str, Any]]
    history: list[dict[str, float]]

    @staticmethod
    def open(
        output: Path,
        rewards: tuple[Reward, ...],
        log_completions: int,
        trackers: list[Tracker],
        step: int,
        resumed: bool,
        world: World,
    ) -> Recorder:
        """Opens the run's files, and removes lines that were written after step `step`.

        Args:
            output: the run's directory.
            rewards: the reward functions.
            log_completions: groups of each step to write.
            trackers: those of --report_to.
            step: steps done so far.
            resumed: whether the run continues from a checkpoint; else earlier evaluations go too.
            world: the ranks.

        Returns:
            The recorder, the same on every rank but for the files.
        """
        evaluations_file = JsonLines(output / "evaluations.jsonl", step if resumed else -1, world.is_main)
        return Recorder(
            output=output,
            rewards=rewards,
            log_completions=log_completions,
            trackers=trackers,
            metrics_file=JsonLines(output / "metrics.jsonl", step, world.is_main),
            completions_file=JsonLines(output / "completions.jsonl", step, world.is_main),
            evaluations_file=evaluations_file,
            evaluations=world.from_main(evaluations_file.rows() if world.is_main else None),
            history=[],
        )

    def written_steps(self) -> list[dict[str, Any]]:
        """Returns the rows of the steps before this process; [] on ranks that don't write."""
        return self.metrics_file.rows() if self.metrics_file.writes else []

    def write_step(self, step: int, row: Mapping[str, float], groups: Sequence[RolloutGroup]) -> None:
        """Writes the metrics of step `step` (counted from 1), and some of its completions."""
        self.history.append({"step": step, **row})
        self.metrics_file.write({"step": step, **row})
        shown = [group_record(*g, self.rewards) for g in sample_of_groups(groups, self.log_completions)]
        for group in shown:
            self.completions_file.write({"step": step, **group})
        for tracker in self.trackers:
            tracker.log(step, row, shown)

    def write_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of the evaluation after `step` steps."""
        self.evaluations.append({"step": step, **figures})
        self.evaluations_file.write(self.evaluations[-1])

    def write_error(self, error: BaseException) -> str:
        """Writes the full traceback to error.txt and returns a sentence that says where it is."""
        path = self.output / "error.txt"
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError as cannot:
            return f"the full traceback could not be written to {path}: {cannot.strerror}"
        return f"the full traceback is in {path}"

    def close(self) -> None:
        """Closes the files and the trackers."""
        for file in (self.metrics_file, self.completions_file, self.evaluations_file):
            file.close()
        for tracker in self.trackers:
            tracker.close()
