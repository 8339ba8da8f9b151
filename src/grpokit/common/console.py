"""The console: lines, progress bars with the time left (in a terminal or a notebook), tables of figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from .figures import INTERVAL, figure_label, set_names, show_figure, split_figure
from .terminal import PlainConsole
from .text import FROM_PYTHON

# Only rank 0 prints; all ranks would print the same.
console = PlainConsole(quiet=int(os.environ.get("RANK", "0")) > 0)


def say(text: str) -> None:
    """A line for the user; a progress bar that is up stays below it."""
    console.print(text, soft_wrap=True)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides the progress bars of transformers, which would run through our own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet_advice() -> Iterator[None]:
    """Hides what transformers has to say about a configuration, where it isn't the user's."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner with `text` on a terminal, the text alone elsewhere, while something slow goes on."""
    if console.is_terminal:
        with console.status(Text(text)):
            yield
    else:
        say(text)
        yield


@contextmanager
def counting(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with time left for `total` things (None: unknown); yields a function that is told how many are done."""
    if not console.is_terminal:
        say(f"{text} ...")
        yield lambda done: None
        return
    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)


SLOW = 2.0  # seconds after which work is worth a bar
SAY_EVERY = 30.0  # seconds between two lines, where there is no terminal


@contextmanager
def counting_if_slow(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Does what `counting` does, but shows nothing in the first two seconds. Elsewhere than on a terminal it says lines.

    Args:
        text: what is done.
        total: the number of things to do; None: unknown.

    Yields:
        A function that is told how many are done.
    """
    began = said = time.monotonic()
    with ExitStack() as stack:
        show: Callable[[int], None] | None = None

        def update(done: int) -> None:
            nonlocal show, said
            if done % 100 and done != total:  # the clock costs more than many a thing that is counted
                return
            now = time.monotonic()
            if show is not None:
                show(done)
            elif now - began > SLOW and console.is_terminal:
                show = stack.enter_context(counting(text, total))
                show(done)
            elif now - began > SLOW and (said == began or now - said > SAY_EVERY) and done != total:
                said = now
                left = 0 if total is None else int((now - began) / done * (total - done))
                of = "" if total is None else f" of {total:,}, {left // 60}:{left % 60:02d} left"
                say(f"{text}: {done:,}{of}")

        yield update


WIDE = 110  # columns of a terminal that has room for a bar beside the figures


class StepDisplay:
    """Shows the steps of a run: a bar on a terminal or in a notebook, a plain line every `logging_steps` elsewhere.

    Args:
        start: steps done before.
        total: steps of the whole run.
        logging_steps: steps between two plain lines.
        reward_name: the first reward function, whose mean is shown where it is an accuracy.
        shows: False shows nothing.
    """

    def __init__(
        self, start: int, total: int, logging_steps: int, reward_name: str, shows: bool = True
    ) -> None:
        self.start, self.total, self.every, self.reward_name = start, total, logging_steps, reward_name
        self.shows = shows
        self.began = time.monotonic()
        self.progress: Progress | None = None
        self.notebook: NotebookBar | None = None

    def __enter__(self) -> StepDisplay:
        if self.shows and console.is_terminal:
            # The parts that must be readable at any width come first and do not shrink; the figures are cut to fit.
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
                    "{task.description}",
                    markup=False,
                    table_column=Column(no_wrap=True, ratio=1, overflow="ellipsis"),
                ),
                console=console,
                expand=True,
            )
            self.task = self.progress.add_task("", total=self.total, completed=self.start)
            self.progress.start()
        elif self.shows and console.is_jupyter and not console.quiet:
            self.notebook = NotebookBar(self.start, self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Shows that step `step` is done, with these metrics."""
        if self.progress is not None:
            self.progress.update(self.task, completed=step, description=self._summary(row))
        elif self.notebook is not None:
            self.notebook.update(step, f"{self._summary(row)}  left {self._left(step)}")
        elif self.shows and (step % self.every == 0 or step == self.total):
            say(f"step {step}/{self.total}  {self._summary(row)}  left {self._left(step)}")

    def _left(self, step: int) -> str:
        """The time until the last step, as minutes and seconds."""
        left = (time.monotonic() - self.began) / (step - self.start) * (self.total - step)
        return f"{int(left) // 60}:{int(left) % 60:02d}"

    def _summary(self, row: Mapping[str, float]) -> str:
        accuracy = row.get(f"rewards/{self.reward_name}/mean")
        spread = f"± {row['reward_std']:.3f}" if "reward_std" in row else ""
        shows_accuracy = self.reward_name in ("exact_match", "accuracy") and accuracy is not None
        parts = [
            f"reward {row['reward']:.3f}" if "reward" in row else "" if "teacher/kl" in row else "no reward",
            f"accuracy {accuracy:.3f}" if shows_accuracy else spread,
            f"KL to teacher {row['teacher/kl']:.3f}" if "teacher/kl" in row else "",
            f"length {row.get('completions/mean_length', 0):.1f}",
            f"zero-std {row['frac_reward_zero_std']:.0%}" if "frac_reward_zero_std" in row else "",
            f"{row.get('tokens_per_second', 0):,.0f} tok/s",
        ]
        return "  ".join(part for part in parts if part)


class NotebookBar:
    """A progress bar in a notebook's output, drawn as HTML that is updated in place."""

    def __init__(self, done: int, total: int) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self.total = total
        self.handle: Any = display(self._html(done, ""), display_id=True)

    def update(self, done: int, text: str) -> None:
        """Draws `done` of the total, with `text` behind."""
        self.handle.update(self._html(done, text))

    def _html(self, done: int, text: str) -> Any:
        from html import escape

        from IPython.display import HTML  # pyright: ignore[reportMissingImports]

        return HTML(
            f'<progress value="{done}" max="{self.total}" style="width:16em"></progress> '
            f"<code>step {done}/{self.total}  {escape(text)}</code>"
        )


def _label(name: str, sets: Sequence[str]) -> str:
    own, short = split_figure(name, sets)
    return f"{own}: {figure_label(short)}" if own else figure_label(short)


def figures_table(figures: Mapping[str, float], title: str) -> Table:
    """One evaluation."""
    table, sets = Table(title=title, title_justify="left", show_header=False), set_names(figures)
    for name in figures:
        if not name.endswith(INTERVAL):
            table.add_row(_label(name, sets), show_figure(figures, name))
    return table


def before_after(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> Table:
    """Two evaluations side by side."""
    table = Table(title=f"held-out prompts of {where.removeprefix(FROM_PYTHON)}", title_justify="left")
    for heading in ("", f"before (step {before['step']})", f"after (step {after['step']})"):
        table.add_column(heading, justify="right" if heading else "left")
    sets = set_names(before)
    for name in before:
        if name.startswith("eval/") and name in after and not name.endswith(INTERVAL):
            table.add_row(_label(name, sets), show_figure(before, name), show_figure(after, name))
    return table


def comparison_table(figures: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Several evaluations. A few models get a column each; of many, each has a row."""
    names = [name for name in next(iter(figures.values())) if not name.endswith(INTERVAL)]
    sets = set_names(names)
    rows = [[_label(name, sets), *(show_figure(own, name) for own in figures.values())] for name in names]
    rows = [["", *_short_paths(list(figures))], *rows]
    if len(figures) > FEW_MODELS:
        rows = [list(row) for row in zip(*rows, strict=True)]
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")  # no number is cut
    for row in rows[1:]:
        table.add_row(*row)
    return table


FEW_MODELS = 3


def _short_paths(names: Sequence[str]) -> list[str]:
    """Leaves out the folders that all names begin with.

    Example:
        >>> _short_paths(["runs/a/checkpoint-2", "runs/a/final"])
        ['checkpoint-2', 'final']
    """
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return ["/".join(each[shared:]) for each in parts]
