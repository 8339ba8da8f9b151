"""Sends a run's metrics to experiment trackers, each through its own package. metrics.jsonl is always written too."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..common.console import say
from ..common.text import one_line

TRACKERS = ("tensorboard", "trackio", "wandb", "swanlab")
SHOWN = 2000  # characters of a completion shown in a table


class Tracker(Protocol):
    """Receives a step's metrics and some of its completions."""

    def log(self, step: int, row: Mapping[str, float], groups: Sequence[Mapping[str, Any]]) -> None:
        """Logs one step. `groups` are lines of completions.jsonl."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class SafeTracker:
    """A tracker whose errors never reach the run: the first one is said, and then it is left alone.

    Args:
        name: its name in --report_to, for the warning.
        tracker: the tracker.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self.failed = False

    def log(self, step: int, row: Mapping[str, float], groups: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.log`."""
        self._call(lambda: self.tracker.log(step, row, groups), f"at step {step}")

    def close(self) -> None:
        """See `Tracker.close`."""
        self._call(self.tracker.close, "while it was closed")

    def _call(self, call: Callable[[], None], when: str) -> None:
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a tracker is other people's code, and only watches
            self.failed = True
            warn(self.name, error, when)


def warn(name: str, error: Exception, when: str) -> None:
    """Says that a tracker failed, and that the run goes on without it."""
    say(
        f"warning: --report_to {name}: failed {when}: {type(error).__name__}: {one_line(error)}; the run goes on "
        "without it, and metrics.jsonl has everything"
    )


class TensorBoard:
    """Writes scalars and a text table of completions as event files in the run's tensorboard/."""

    def __init__(self, output: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what an interrupted run logged after its checkpoint.
        purge = first_step + 1 if first_step else None
        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=purge)

    def log(self, step: int, row: Mapping[str, float], groups: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.log`."""
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)
        if groups:
            lines = ["| reward | completion |", "|---|---|"]
            lines += [f"| {reward} | {_cell(text)} |" for _, text, reward in table(groups)]
            self.writer.add_text("completions", "\n".join(lines), step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self.writer.close()


class Logged:
    """Trackio, Weights & Biases and SwanLab, whose `init`, `log` and `finish` are alike."""

    def __init__(
        self, module: Any, project: str, name: str, config: Mapping[str, Any], first_step: int, output: Path
    ) -> None:
        self.module = module
        options: dict[str, Any] = {"project": project, "config": dict(config)}
        if module.__name__ == "swanlab":
            options |= {"experiment_name": name, "logdir": str(output / "swanlab")}
        else:
            options["name"] = name
            if first_step:
                options["resume"] = "allow"
        if module.__name__ == "wandb":
            options |= {"dir": str(output), "id": name}
        module.init(**options)

    def log(self, step: int, row: Mapping[str, float], groups: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.log`."""
        found: dict[str, Any] = dict(row)
        kind = getattr(self.module, "Table", None)
        if groups and kind is not None:
            names = ["prompt", "completion", "reward"]
            rows = [[str(prompt), text, reward] for prompt, text, reward in table(groups)]
            found["completions"] = _table_of(self.module, kind, names, rows)
        self.module.log(found, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self.module.finish()


def start_trackers(
    names: Sequence[str],
    *,
    project: str,
    run_name: str,
    config: Mapping[str, Any],
    first_step: int,
    output: Path,
) -> list[Tracker]:
    """Starts the trackers that --report_to names.

    Args:
        names: some of TRACKERS.
        project: the project's name.
        run_name: the run's name.
        config: the run's options.
        first_step: the step that the run resumes from; 0: a new run.
        output: the run's directory.

    Returns:
        The trackers that could be started, in order. One that fails later is left alone.

    Raises:
        ValueError: one is not installed. The message says how to install it.
    """
    found: list[Tracker] = []
    for name in names:
        try:
            if name == "tensorboard":
                tracker: Tracker = TensorBoard(output, first_step)
            else:
                module = importlib.import_module(name)
                tracker = Logged(module, project, run_name, config, first_step, output)
        except ImportError as error:
            raise ValueError(
                f"--report_to {name}: is not installed ({error}); pip install grpokit[{name}]"
            ) from error
        except Exception as error:  # noqa: BLE001 - a tracker is other people's code, and only watches
            warn(name, error, "to start")
            continue
        found.append(SafeTracker(name, tracker))
    return found


def table(groups: Sequence[Mapping[str, Any]]) -> list[tuple[Any, str, float | None]]:
    """Returns (prompt, completion, reward) per completion of some lines of completions.jsonl, with long texts cut."""
    return [
        (group["prompt"], text[:SHOWN] + ("…" if len(text) > SHOWN else ""), reward)
        for group in groups
        for text, reward in zip(group["completions"], group["reward"], strict=True)
    ]


def _table_of(module: Any, kind: Any, names: list[str], rows: list[list[Any]]) -> Any:
    if module.__name__ == "wandb":
        return kind(columns=names, data=rows)
    import pandas

    return kind(dataframe=pandas.DataFrame(rows, columns=names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
