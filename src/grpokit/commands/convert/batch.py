"""Converts their batch, counted in devices, accumulation and generation batches, to prompts and updates of a step.

Their steps are optimizer steps. A step here samples once, and has `updates_per_step` × `num_iterations` of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ...config.conversion.draft import Draft, listed
from ...config.foreign import COUNTED, IN_OPTIMIZER_STEPS
from ...data.names import read_name


@dataclass(frozen=True)
class Pace:
    """How their optimizer steps are counted here. Example: `Pace(4, prompts=16)`: 4 of theirs are one step."""

    per_step: int  # their optimizer steps in one step
    prompts: int  # prompts of a step


def convert_batch(draft: Draft, processes: int) -> Pace:
    """Sets prompts_per_step, num_generations, num_iterations and updates_per_step.

    Raises:
        ValueError: the batch does not fit the number of processes.
    """
    device, accumulation, steps, batch = (_count(draft, name) for name in COUNTED)
    device, accumulation = device or 8, accumulation or 1
    generations, iterations = _count(draft, "num_generations") or 8, _count(draft, "num_iterations") or 1
    if draft.given & {"steps_per_generation"} and draft.given & {"generation_batch_size"} and batch and steps:
        draft.say("steps_per_generation: generation_batch_size decides")
    update = device * accumulation * processes
    batch = batch or device * processes * (steps or accumulation)
    if update > batch and update % batch == 0:  # several rounds of sampling before the weights move
        batch = update
    if batch % update or batch % generations:
        if not draft.given & {*COUNTED, "num_generations"}:
            draft.say(
                f"prompts_per_step: {draft.name}'s default batch fits no group; set it and --num_generations"
            )
            return Pace(iterations, 8)
        raise ValueError(
            f"generation_batch_size {batch}: expected a multiple of num_generations {generations} and of the {update} "
            f"completions of an optimizer step; is --num_processes {processes} right?"
        )
    prompts, updates = batch // generations, batch // update
    draft.put("prompts_per_step", prompts, *COUNTED)
    draft.defaulted.discard("prompts_per_step")  # always written
    draft.put("num_generations", generations)
    draft.put("num_iterations", iterations)
    whole = max(count for count in range(1, updates + 1) if prompts % count == 0)
    if whole > 1:
        draft.put("updates_per_step", whole, *COUNTED)
    draft.say(
        f"prompts_per_step: {batch} completions at once are {prompts} prompts × {generations}, in {updates} "
        f"optimizer step{'s' if updates > 1 else ''}; memory is --micro_batch_tokens here, and changes no result"
    )
    if whole < updates:
        draft.say(f"updates_per_step: {whole}, not {updates}: an optimizer step has whole groups here")
    return Pace(updates * iterations, prompts)


def _count(draft: Draft, name: str) -> int | None:
    value = draft.take_number(name)
    if value is not None and (value < 1 or int(value) != value):
        draft.unsupported(name, value, "is no number of completions, steps or passes")
        return None
    return None if value is None else int(value)


def convert_steps(draft: Draft, pace: Pace) -> None:
    """Converts intervals, the length of the run and the warm-up from optimizer steps to steps."""
    rows = _rows(draft)
    epoch = None if rows is None else rows // pace.prompts * pace.per_step  # optimizer steps of an epoch
    total = _length(draft, pace, epoch, rows)
    _intervals(draft, epoch)
    _share_of_warmup(draft)
    for name in IN_OPTIMIZER_STEPS[1:]:
        value = draft.take_number(name)
        if value is None:
            continue
        if 0 < value < 1:
            value = _of_the_run(draft, name, value, total)
            if value is None:
                continue
        if value < 0:
            draft.unsupported(name, value, "is no number of steps")
            continue
        steps = max(1, round(value / pace.per_step)) if value > 0 else 0
        draft.put(name, steps, name)
        if name == "warmup_steps" and steps:
            draft.say(
                f"warmup_steps: the first learning rate is 1/{steps + 1} of the peak here, and 0 in {draft.name}"
            )
        if pace.per_step > 1 and value > 0:
            draft.say(f"{name}: {value:g} optimizer steps are {steps} steps of {pace.per_step}")


def _share_of_warmup(draft: Draft) -> None:
    """Sets warmup_ratio. In newer versions of transformers, warmup_steps below 1 is such a share."""
    share = draft.take_number("warmup_ratio")
    steps = draft.left.get("warmup_steps")
    if isinstance(steps, int | float) and 0 < steps < 1:
        share = draft.take_number("warmup_steps")
    if share:
        draft.take("warmup_steps")
        draft.put("warmup_ratio", share, "warmup_ratio", "warmup_steps")


def _of_the_run(draft: Draft, name: str, share: float, total: float | None) -> int | None:
    if total is None:
        draft.say(f"{name}: {share:g} is a share of a run of unknown length; left out, set --{name} in steps")
        return None
    return max(1, math.ceil(share * total))


def _length(draft: Draft, pace: Pace, epoch: int | None, rows: int | None) -> float | None:
    """Sets max_steps. Returns their optimizer steps, or None where the number of rows decides and isn't known."""
    most, epochs = draft.take_number("max_steps", -1), draft.take_number("num_train_epochs", 3.0)
    assert most is not None
    assert epochs is not None
    if most > 0:
        steps = max(1, round(most / pace.per_step))
        if pace.per_step > 1:
            draft.say(f"max_steps: {most:g} optimizer steps are {steps} steps of {pace.per_step}")
        draft.put("max_steps", steps)
        return most
    if not epoch:
        draft.put("num_train_epochs", epochs)
        draft.defaulted.discard("num_train_epochs")  # always written
        if epoch is not None:
            draft.say(f"num_train_epochs: {rows} rows are less than one step of {pace.prompts} prompts")
        return None
    total = math.ceil(epochs * epoch)
    steps = max(1, round(total / pace.per_step))
    draft.put("max_steps", steps, "num_train_epochs")
    draft.defaulted.discard("max_steps")
    draft.say(f"max_steps: {epochs:g} epochs of {rows} rows are {steps} steps of {pace.prompts} prompts")
    return total


def _intervals(draft: Draft, epoch: int | None) -> None:
    """Converts save_strategy and eval_strategy. Puts a number of optimizer steps in the place of an epoch."""
    for word in ("save", "eval"):
        name, strategy = f"{word}_steps", str(draft.take(f"{word}_strategy", ""))
        if strategy in ("no", "False"):
            draft.left.pop(name, None)
        elif strategy == "epoch" and epoch:
            draft.left[name] = epoch
        elif strategy not in ("", "steps"):
            draft.left.pop(name, None)
            draft.say(
                f"{word}_strategy: {strategy!r} counts in epochs there; left out, set --{name} in steps"
            )


def _rows(draft: Draft) -> int | None:
    """Counts the rows of the dataset where it is on this machine. Never asks the Hub."""
    names = listed(draft.ours.get("dataset"))
    counts = [_rows_of(draft, read_name(name).place) for name in names]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(names) else None


def _rows_of(draft: Draft, name: str) -> int | None:
    from ...data.sources import is_hub_name, open_dataset

    path = name if Path(name).exists() else str(draft.folder / name)
    most = draft.ours.get("max_samples")
    if is_hub_name(name) or not Path(path).exists():
        return most
    try:
        found = open_dataset(path, "--dataset", str(draft.ours.get("dataset_split", "")))
        rows = sum(1 for _ in found.rows())
    except (ValueError, OSError):
        return None
    return min(rows, most or rows)
