"""A short supervised warm-up of a tiny model: cross-entropy on completions only, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.terminal import PlainConsole

IGNORED = -100  # cross_entropy's own mark for a position without a label


class Example(NamedTuple):
    """One sequence to imitate.

    Example:
        >>> example = Example([6, 4, 13], [4, 6, 1])  # `31=` → `13<eos>`
    """

    prompt_ids: list[int]
    completion_ids: list[int]  # with the end-of-sequence token


def warm_up(
    model: torch.nn.Module,
    batch: Callable[[], list[Example]],
    *,
    steps: int,
    learning_rate: float,
    title: str,
) -> None:
    """Trains `model` in place.

    Only completion tokens are in the loss, all with the same weight. The learning rate falls linearly over the last third.
    With a constant one, the accuracy after the last step is a matter of luck (sort_digits, six seeds: 0.18 to 0.35 sampled;
    with the fall, 0.29 to 0.34). Runs on one thread: for so small a model two are slower, and the sums are then the same on
    every number of cores.

    Args:
        model: the model.
        batch: returns the examples of one step.
        steps: the number of AdamW steps.
        learning_rate: before the fall.
        title: of the progress bar.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    with _one_thread(), _progress(title, steps) as advance:
        model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, 3 * (steps - step) / steps)
            inputs, labels = collate(batch())
            logits = model(input_ids=inputs).logits  # [B, T, V]
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance(float(loss.detach()))
    model.eval()


def collate(examples: list[Example], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Pads examples on the right. Returns input ids [B, T] and labels [B, T], which are IGNORED on prompts and padding.

    No attention mask is needed: a causal model never looks right, and padding has no label.
    """
    width = max(len(e.prompt_ids) + len(e.completion_ids) for e in examples)
    inputs = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORED)
    for i, (prompt, completion) in enumerate(examples):
        end = len(prompt) + len(completion)
        inputs[i, :end] = torch.tensor(prompt + completion)
        labels[i, len(prompt) : end] = torch.tensor(completion)
    return inputs, labels


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _progress(title: str, steps: int) -> Iterator[Callable[[float], None]]:
    """Shows a bar with the time left on stderr, or three plain lines if stderr is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = PlainConsole(stderr=True)
    if console.is_terminal:
        columns: list[Any] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=steps, loss=float("nan"))
            yield lambda loss: bar.update(task, advance=1, loss=loss)
        return

    done = 0

    def plain(loss: float) -> None:
        nonlocal done
        done += 1
        if done * 3 // steps != (done - 1) * 3 // steps:
            print(f"{title}: step {done}/{steps}, loss {loss:.3f}", file=sys.stderr)

    yield plain
