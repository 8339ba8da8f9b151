"""Reads the files of a run into `RunData`. Missing files are fine; malformed ones are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

EXPECTED_RUN = "expected the --output_dir of `grpokit train`, with config.yaml and metrics.jsonl"


@dataclass(frozen=True)
class RunData:
    """The files that a run has written so far, read into memory.

    Example:
        >>> run = RunData(Path("runs/demo"), {"loss_type": "dapo"}, ({"step": 1, "reward": 0.4},), (), ())
        >>> run.metric("reward")
        ([1], [0.4])
    """

    path: Path
    config: Row  # config.yaml: the resolved options
    steps: tuple[Row, ...]  # the metrics, one row per step, in order
    evaluations: tuple[Row, ...]  # rows with the figures eval/..., one per step, in order
    groups: tuple[Row, ...]  # the groups of the last step in completions.jsonl

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    def metric(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a metric, where it exists and is finite."""
        return _column(self.steps, name)

    def evaluation(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a figure of the evaluations, such as `eval/pass@1`."""
        return _column(self.evaluations, name)

    def has(self, name: str) -> bool:
        """Checks whether a metric has at least one finite value."""
        return any(is_number(row.get(name)) for row in self.steps)

    def names(self) -> set[str]:
        """Returns the names of all metrics."""
        return {name for row in self.steps for name in row}

    def num_done(self) -> int:
        """Returns the number of steps that have metrics, evaluations aside."""
        return sum(any(name != "step" and not name.startswith("eval/") for name in row) for row in self.steps)


def is_number(value: Any) -> bool:
    """Checks whether `value` is a finite number (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(path: Path) -> RunData:
    """Reads a run's directory.

    Raises:
        ValueError: it is no run, or has a malformed line. The message names the path, or file:line.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such directory"
        raise ValueError(f"{path}: {what}; {EXPECTED_RUN}")
    metrics, config = path / "metrics.jsonl", path / "config.yaml"
    if not metrics.exists() and not config.exists():
        raise ValueError(f"{path}: is not a run; {EXPECTED_RUN}")
    for file in (config, metrics):
        if not file.is_file():
            raise ValueError(f"{file}: no such file; {EXPECTED_RUN}")
    rows = _by_step(metrics)
    if not rows:
        raise ValueError(f"{metrics}: no metrics yet; expected a line of JSON for each step that is done")
    evaluated = {step: _figures(row) for step, row in rows.items()}
    for step, row in _by_step(path / "evaluations.jsonl").items():
        evaluated[step] = {**evaluated.get(step, {}), **_figures(row)}
    return RunData(
        path=path,
        config=read_config(config),
        steps=tuple(rows[step] for step in sorted(rows)),
        evaluations=tuple({"step": step, **evaluated[step]} for step in sorted(evaluated) if evaluated[step]),
        groups=_last_groups(path / "completions.jsonl"),
    )


def read_config(path: Path) -> Row:
    """Reads a config.yaml. Raises ValueError where it is not YAML, or not `name: value` lines."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected `name: value` lines, got {type(config).__name__}")
    return {str(name): value for name, value in config.items()}


def _by_step(path: Path) -> dict[int, Row]:
    """Returns the rows by step. Where two rows of a step have the same name, the later counts."""
    rows: dict[int, Row] = {}
    for step, row in _stepped(path):
        rows[step] = {**rows.get(step, {}), **row}
    return rows


def _last_groups(path: Path) -> tuple[Row, ...]:
    """Returns the groups of the last step. Reads line by line, because a long run's file does not fit in memory."""
    last, groups = -1, []
    for step, row in _stepped(path):
        if step != last:
            last, groups = step, []
        groups.append(row)
    return tuple(groups)


def _stepped(path: Path) -> Iterator[tuple[int, Row]]:
    """Yields (step, row) per line. A row without a step follows the row before it."""
    step = -1
    for number, row in _objects(path):
        given = row.get("step")
        step = step + 1 if given is None else given
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"{path}:{number}: step {given!r}: expected a whole number, 0 or more")
        yield step, {**row, "step": step}


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of a JSON-lines file; nothing where there is no file.

    A last line that has no line end and does not parse is a write in progress, and is ignored.
    """
    if not path.exists():
        return
    with path.open("rb") as file:  # bytes, because a torn line may end within a character
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}:{number}: expected one JSON object on the line: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
            yield number, row


def _figures(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("eval/") and is_number(value)}


def _column(rows: tuple[Row, ...], name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], float(row[name])) for row in rows if is_number(row.get(name))]
    return [step for step, _ in found], [value for _, value in found]
