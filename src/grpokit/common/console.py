"""What a person sees while a run goes on: the plan, a progress bar (or plain lines), tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

# Of several processes one speaks: what all find out, they all find out.
console = Console(highlight=False, quiet=int(os.environ.get("RANK", "0")) > 0)


def say(text: str) -> None:
    """A line for the user; a progress bar that is up stays below it."""
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner with `text` on a terminal, the text alone elsewhere, while something slow goes on."""
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        say(text)
        yield


@contextmanager
def counting(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with time left for `total` things; yields a function that is told how many are done."""
    if not console.is_terminal:
        say(f"{text} ...")
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)


WIDE = 110  # columns of a terminal that has room for a bar beside the figures


class StepDisplay:
    """The bar of a training run on a terminal, a plain line every `logging_steps` elsewhere."""

    def __init__(self, start: int, total: int, logging_steps: int, reward_name: str) -> None:
        self.start, self.total, self.every, self.reward_name = start, total, logging_steps, reward_name
        self.began = time.monotonic()
        self.progress: Progress | None = None

    def __enter__(self) -> StepDisplay:
        if console.is_terminal:
            # What must be readable in any width comes first and does not shrink; the figures are cut where they don't fit.
            wide = [BarColumn(bar_width=20)] if console.width >= WIDE else []
            self.progress = Progress(
                TextColumn("step", table_column=Column(no_wrap=True, min_width=4)),
                MofNCompleteColumn(
                    table_column=Column(no_wrap=True, min_width=len(f"{self.total}/{self.total}"))
                ),
                *wide,
                TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn(
                    "{task.description}", table_column=Column(no_wrap=True, ratio=1, overflow="ellipsis")
                ),
                console=console,
                expand=True,
            )
            self.task = self.progress.add_task("", total=self.total, completed=self.start)
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Step `step` is done, with these metrics."""
        if self.progress is not None:
            self.progress.update(self.task, completed=step, description=self._summary(row))
        elif step % self.every == 0 or step == self.total:
            left = (time.monotonic() - self.began) / (step - self.start) * (self.total - step)
            say(
                f"step {step}/{self.total}  {self._summary(row)}  left {int(left) // 60}:{int(left) % 60:02d}"
            )

    def _summary(self, row: Mapping[str, float]) -> str:
        accuracy = row.get(f"rewards/{self.reward_name}/mean")
        spread = f"± {row['reward_std']:.3f}" if "reward_std" in row else ""
        shows_accuracy = self.reward_name in ("exact_match", "accuracy") and accuracy is not None
        parts = [
            f"reward {row['reward']:.3f}" if "reward" in row else "no reward",
            f"accuracy {accuracy:.3f}" if shows_accuracy else spread,
            f"length {row.get('completions/mean_length', 0):.1f}",
            f"zero-std {row['frac_reward_zero_std']:.0%}" if "frac_reward_zero_std" in row else "",
            f"{row.get('tokens_per_second', 0):,.0f} tok/s",
        ]
        return "  ".join(part for part in parts if part)


EVAL_NAMES = {"pass@1_greedy": "greedy accuracy (pass@1)", "pass@1": "sampled accuracy (pass@1)"}


def _eval_name(name: str) -> str:
    short = name.removeprefix("eval/")
    return EVAL_NAMES.get(short, short.replace("_", " "))


INTERVAL = "_ci95"  # at the end of a figure's name: half the width of its confidence interval


def figures_table(figures: Mapping[str, float], title: str) -> Table:
    """One evaluation."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name in figures:
        if not name.endswith(INTERVAL):
            table.add_row(_eval_name(name), _with_interval(figures, name))
    return table


def before_after(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> Table:
    """Two evaluations side by side."""
    table = Table(title=f"held-out prompts of {where}", title_justify="left")
    for heading in ("", f"before (step {before['step']})", f"after (step {after['step']})"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in before:
        if name.startswith("eval/") and name in after and not name.endswith(INTERVAL):
            table.add_row(_eval_name(name), _with_interval(before, name), _with_interval(after, name))
    return table


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    """`0.602 ± 0.047` where the half width of its 95 % confidence interval is known."""
    half = figures.get(name + INTERVAL)
    return f"{figures[name]:.3f}" + ("" if half is None else f" ± {half:.3f}")
