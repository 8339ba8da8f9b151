"""Checkpoints: a Hugging Face directory, plus everything that an exact resume needs. Nothing is pickled.

    checkpoint-40/                     after 40 steps; checkpoint-40-update-3: 3 updates into the next one
        config.json  model.safetensors  tokenizer.json ...     what from_pretrained and vLLM load
        trainer/state.json             steps done, optimizer steps, every other file's size and SHA-256; written last
        trainer/config.yaml            the configuration it was trained with
        trainer/optimizer.safetensors  AdamW's moments, by parameter name
        trainer/parameters.safetensors trained parameters that the model files don't hold to the bit: see exact.py
        trainer/buffers.safetensors    the model's buffers, likewise
        trainer/reference.safetensors  the reference, where it moves (--sync_ref_model)
        trainer/random.safetensors     the random state of numpy and torch on each rank (a reward function may use it)
        trainer/step.safetensors       within a step: its rollouts, their log-probs, and how far it has come
        trainer/ahead.safetensors      between two steps: the rollouts that were sampled ahead for the next one

A directory is written under a temporary name, synced, read back and renamed, so a checkpoint that exists is complete.
Sharded tensors are gathered first, so any number of ranks can resume from it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..parallel import ALONE, World
from ..policy.export import SaveFormat, atomically, gather_to_main, gather_weights, write_model
from ..policy.learn import StepProgress
from ..policy.policy import Policy
from ..rollouts.gather import groups_from_tensors, groups_to_tensors
from ..types import Metric, Prompt, RolloutGroup
from .exact import restore_exact, restore_parameters, unique, write_exact
from .optimizer_state import gather_optimizer, restore_optimizer
from .random_state import RandomState, random_state_now, random_states, restore_random_state
from .tensors import add_prefix, strip_prefix, updates_from_tensors, updates_to_tensors

FORMAT = 2  # version of the trainer directory; raised when its contents change
AHEAD, REFERENCE = "ahead.safetensors", "reference.safetensors"


@dataclass(frozen=True)
class TrainState:
    """How far a run has come: between two steps, or within one."""

    step: int = 0  # steps finished, which is also where the next one begins in the prompt order
    skipped: int = 0  # updates of those steps that were skipped because they were not finite
    dropped: int = 0  # episodes that an environment's errors have cost
    unfinished: StepProgress | None = None  # progress within the next step, or None
    ahead: Sequence[RolloutGroup] = ()  # all ranks' unscored rollouts, sampled ahead for the next step
    data: dict[str, Any] | None = None  # where a dataset that is read once goes on
    # Digests of the model, the data and the user's code.
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its checkpoint's directory."""
        return f"checkpoint-{self.step}" + (
            "" if self.unfinished is None else f"-update-{self.unfinished.done}"
        )


def save_checkpoint(
    path: Path,
    state: TrainState,
    policy: Policy,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    save_format: SaveFormat,
    *,
    reference: Policy | None = None,
    config: str = "",
    world: World = ALONE,
    random_state: RandomState | None = None,
) -> None:
    """Writes a checkpoint directory: the model, and everything that an exact resume needs. A collective; the main rank writes.

    Args:
        path: the directory.
        state: how far the run has come.
        policy, tokenizer, optimizer: what is saved.
        save_format: how the model is saved.
        reference: the reference, where its weights move during the run.
        config: the run's options, as YAML.
        world: the ranks.
        random_state: this rank's random state; None: the current one.

    Raises:
        OSError: it cannot be written (FailedOnSomeRank among several ranks). Nothing has changed then.
    """
    weights = gather_weights(policy, save_format, world)
    moments, numbers = gather_optimizer(policy, optimizer, world)
    references = (
        {} if reference is None else gather_to_main(reference.model.state_dict(keep_vars=True), world)
    )
    noise, pythons = random_states(world, random_state or random_state_now())

    def write(directory: Path) -> None:
        write_model(directory, weights, policy, tokenizer, save_format)
        trainer = directory / "trainer"
        trainer.mkdir()
        write_exact(directory, policy, weights)
        save_file(moments, trainer / "optimizer.safetensors")
        if references:
            save_file(unique(references), trainer / REFERENCE)
        save_file(noise, trainer / "random.safetensors")
        (trainer / "config.yaml").write_text(config, encoding="utf-8")
        record = {
            "format": FORMAT,
            "exact": True,
            "step": state.step,
            "skipped": state.skipped,
            "dropped": state.dropped,
            "policy_version": policy.version,
            "random": pythons,
            "data": state.data,
            "sources": dict(state.sources),
            **numbers,
        }
        if state.unfinished is not None:
            record["unfinished"] = _write_progress(trainer / "step.safetensors", state.unfinished)
        if state.ahead:
            save_file(groups_to_tensors(state.ahead), trainer / AHEAD)
        files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
        record["files"] = {str(f.relative_to(directory)): [f.stat().st_size, _digest(f)] for f in files}
        (trainer / "state.json").write_text(json.dumps(record), encoding="utf-8")

    with world.together():
        if not world.is_main:
            return
        try:
            atomically(path, write)
        except OSError as error:
            others = checkpoints(path.parent)
            raise OSError(
                f"{error}; the newest checkpoint is {others[-1]}" if others else str(error)
            ) from error


def load_checkpoint(
    path: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    prompt_at: Callable[[int], Prompt],
    world: World = ALONE,
    reference: Policy | None = None,
) -> TrainState:
    """Restores optimizer, full-precision parameters, random state and a step's rollouts. The model is loaded already.

    Args:
        path: the checkpoint.
        policy, optimizer: what is restored, in place.
        prompt_at: returns the prompt at a position of the data order.
        world: the ranks.
        reference: the reference, where its weights move during the run; restored in place.

    Returns:
        How far the run had come.

    Raises:
        ValueError: a file is missing or has another format. The message names it.
    """
    trainer = path / "trainer"
    try:
        record = read_record(path)
        tensors = load_file(trainer / "optimizer.safetensors")
        noise = load_file(trainer / "random.safetensors")
        restore_exact(path, policy, complete="exact" in record)
        restore_optimizer(tensors, record, policy, optimizer, world)
        if reference is not None:
            restore_parameters([trainer / REFERENCE], reference)
        unfinished = None
        if "unfinished" in record:
            unfinished = _read_progress(trainer / "step.safetensors", record["unfinished"], prompt_at)
        ahead: Sequence[RolloutGroup] = ()
        if f"trainer/{AHEAD}" in record["files"]:
            ahead = groups_from_tensors(load_file(trainer / AHEAD), prompt_at)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"--resume_from_checkpoint {path}: cannot be resumed from: {error}") from error
    policy.version = record["policy_version"]
    restore_random_state(record["random"], noise, world.rank)
    return TrainState(
        step=record["step"],
        skipped=record["skipped"],
        dropped=record.get("dropped", 0),
        unfinished=unfinished,
        ahead=ahead,
        data=record.get("data"),
        sources=record.get("sources", {}),
    )


def read_record(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's trainer/state.json. Raises OSError, ValueError or KeyError unless it has this format."""
    record = json.loads((path / "trainer" / "state.json").read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}; this version of grpokit reads format {FORMAT}")
    return record


def verify(path: Path) -> None:
    """Raises ValueError naming the first file of a checkpoint that is missing, cut short or changed."""
    try:
        record = read_record(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: is incomplete or corrupt: trainer/state.json: {error}") from error
    for name, (size, digest) in record["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{path}: is incomplete or corrupt: {name} is missing")
        if file.stat().st_size != size:
            raise ValueError(
                f"{path}: is incomplete or corrupt: {name} has {file.stat().st_size} bytes, not {size}"
            )
        if _digest(file) != digest:
            raise ValueError(
                f"{path}: is incomplete or corrupt: {name} is not what was written (its SHA-256 differs)"
            )


def checkpoints(output_dir: Path) -> list[Path]:
    """Returns the checkpoints in a run's directory, oldest first. `verify` checks whether one is complete."""

    def age(path: Path) -> tuple[int, int]:
        _, step, *update = path.name.split("-")
        return int(step), int(update[1]) if update else -1

    names = re.compile(r"checkpoint-\d+(-update-\d+)?")
    return sorted((p for p in output_dir.glob("checkpoint-*") if names.fullmatch(p.name)), key=age)


def prune(output_dir: Path, limit: int, written: Path | None = None) -> None:
    """Deletes the oldest checkpoints, so that `limit` are left (0: all). Deletes none unless the newest is complete.

    The one that was just `written` is never deleted.
    """
    found = checkpoints(output_dir)
    if limit and len(found) > limit:
        verify(found[-1])
        for path in found[:-limit]:
            if path != written:
                shutil.rmtree(path)


def _write_progress(file: Path, progress: StepProgress) -> dict[str, Any]:
    save_file(
        add_prefix("groups", groups_to_tensors(progress.groups))
        | add_prefix("updates", updates_to_tensors(progress.updates)),
        file,
    )
    written = {name: metric.to_json() for name, metric in progress.metrics.items()}
    return {
        "prepared": progress.prepared,
        "done": progress.done,
        "skipped": progress.skipped,
        "metrics": written,
    }


def _read_progress(file: Path, record: dict[str, Any], prompt_at: Callable[[int], Prompt]) -> StepProgress:
    tensors = load_file(file)
    return StepProgress(
        updates_from_tensors(strip_prefix("updates", tensors)),
        groups_from_tensors(strip_prefix("groups", tensors), prompt_at),
        record["prepared"],
        record["done"],
        record["skipped"],
        {name: Metric.from_json(written) for name, written in record["metrics"].items()},
    )


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
