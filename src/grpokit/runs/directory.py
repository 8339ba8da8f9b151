"""A run's directory: which run it belongs to, where to resume, and which options changed since."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..config.options import TrainConfig
from ..config.resume import options_with
from ..config.yaml import load_yaml
from ..parallel import restarts
from .checkpoint import checkpoints, read_record, verify
from .sources import SOURCES, has_moved, is_same_place

# The files that a run leaves before its first checkpoint. All of them can be made again.
BEGUN = {
    "config.yaml",
    "error.txt",
    "metrics.jsonl",
    "completions.jsonl",
    "evaluations.jsonl",
    "about.json",
    "batches",
    "tokens",
    "profile",
    "nonfinite",
    "vllm",
    "best",
    "tensorboard",
    "wandb",
    "swanlab",
}

# Each option declares its resume rule in config/. Options without one identify the run and must not change.
FREE = options_with(TrainConfig, ["free"])
OF_OPTIMIZER = options_with(TrainConfig, ["optimizer"])
OF_ROLLOUTS = options_with(TrainConfig, ["sampling"])
STEERING = options_with(TrainConfig, ["steering", "optimizer", "sampling"])


def find_checkpoint(config: TrainConfig, output: Path) -> Path | None:
    """Returns the complete checkpoint to resume from, or None for a fresh start.

    A restart by `torchrun --max-restarts` resumes without being asked. A run that failed before its first step, or with
    `auto` before its first checkpoint, does not block a fresh start.

    Raises:
        ValueError: the named checkpoint is missing or incomplete (the message names an older complete one), or a fresh
            start would overwrite another run's files.
    """
    found = checkpoints(output) if output.is_dir() else []
    wanted = config.resume_from_checkpoint
    if restarts() and (found or not wanted):
        wanted = "auto"
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output}: is a file; name a directory")
    if wanted and wanted != "auto":
        if not (Path(wanted) / "trainer").is_dir():
            what = (
                "is no checkpoint (it has no directory trainer)"
                if Path(wanted).exists()
                else "does not exist"
            )
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: {what}; use `auto` for the newest one in --output_dir"
            )
        if Path(wanted).resolve().parent != output.resolve() and not restarts():
            _refuse_used(output, bool(found))  # the files in it belong to another run
        return _whole_one(Path(wanted))
    if wanted == "auto" and found:
        return _whole_one(found[-1])
    if wanted == "auto" and (others := _others(output)):
        raise ValueError(
            f"--output_dir {output}: has {min(others)} but no checkpoint to resume from, and a fresh start would write over "
            "it; name another directory (a run with --save_steps N writes checkpoints)"
        )
    if not wanted:
        _refuse_used(output, bool(found))
    return None


def _others(output: Path) -> set[str]:
    """Returns the files of a run's directory that cannot be made again."""
    names = {item.name for item in output.iterdir()} if output.exists() else set()
    return {name for name in names - BEGUN if not name.endswith(".writing")}


def _refuse_used(output: Path, has_checkpoint: bool) -> None:
    steps = output / "metrics.jsonl"
    if _others(output) or (steps.exists() and steps.stat().st_size > 0):
        resume = ", or continue the run in it with --resume_from_checkpoint auto" if has_checkpoint else ""
        what = "is not empty, and holds a finished run" if (output / "final").is_dir() else "is not empty"
        raise ValueError(f"--output_dir {output}: {what}; name another{resume}")


def set_aside(checkpoint: Path, output: Path) -> list[Path]:
    """Renames the run's checkpoints and best model that are newer than the one it resumes from. Returns their new names.

    Otherwise `auto` would find them again, and the steps between would be missing.
    """
    found = checkpoints(output.resolve())
    here = checkpoint.resolve()
    newer = found[found.index(here) + 1 :] if here in found else []
    return [path.rename(_free_name(path)) for path in newer] + set_best_aside(
        output, read_record(here)["step"]
    )


def set_best_aside(output: Path, step: int) -> list[Path]:
    """Renames the best model if its step is after `step` (−1: always). Returns its new name."""
    best = output.resolve() / "best"
    written = best / "evaluation.json"
    if not best.is_dir() or (written.is_file() and json.loads(written.read_text())["step"] <= step):
        return []
    return [best.rename(_free_name(best))]


def _free_name(path: Path) -> Path:
    names = (path.with_name("superseded-" * times + path.name) for times in itertools.count(1))
    return next(name for name in names if not name.exists())


def _whole_one(checkpoint: Path) -> Path:
    """Returns the checkpoint if it is complete. Raises ValueError otherwise, naming the newest older one that is."""
    try:
        verify(checkpoint)
    except ValueError as error:
        others = checkpoints(checkpoint.parent)
        older = others[: others.index(checkpoint)] if checkpoint in others else []
        for other in reversed(older):
            try:
                verify(other)
            except ValueError:
                continue
            raise ValueError(
                f"{error}; an older one is complete: --resume_from_checkpoint {other}"
            ) from error
        raise ValueError(f"{error}; there is no older one that is complete") from error
    return checkpoint


def claim(output: Path) -> None:
    """Creates the directory and tests writing to it. Raises ValueError if that fails."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {output}: cannot be made: {error.strerror}; name another") from error
    trial = output / ".trial.writing"
    try:
        trial.write_text("", encoding="utf-8")
        trial.unlink()
    except OSError as error:
        raise ValueError(
            f"--output_dir {output}: cannot be written to ({error.strerror}); name another, or change its permissions"
        ) from error


def make_rescue_directory(output: Path, size: int) -> str | None:
    """Makes a new directory in the system's temporary directory, for `size` bytes.

    Example: `make_rescue_directory(Path("runs/demo"), 10**9)` may return "/tmp/demo-x8k2_1f3".

    Returns:
        Its path, or None where that is on the run's own disk, has no such room, or can't be written to.
    """
    try:
        temporary = tempfile.gettempdir()
        full = os.stat(temporary).st_dev == os.stat(output).st_dev or shutil.disk_usage(temporary).free < size
        return None if full else tempfile.mkdtemp(prefix=f"{output.resolve().name}-")
    except OSError:
        return None


def changed_options(config: TrainConfig, checkpoint: Path) -> list[str]:
    """Returns `name: old → new` for the options that differ from the checkpoint's and change how the run goes on.

    Within a step, the loss and the batch are fixed too, and --max_steps must include that step.

    Raises:
        ValueError: an option differs that may not: see FREE and STEERING.
    """
    record = read_record(checkpoint)
    within, under_way = "unfinished" in record, record["step"] + 1
    if within and config.max_steps < under_way and not config.num_train_epochs:
        raise ValueError(
            f"--max_steps {config.max_steps}: {checkpoint} was saved within step {under_way}; use {under_way} or more"
        )
    changes = _changes(config, checkpoint)
    # A reference that moves is in the checkpoint.
    allowed = OF_OPTIMIZER if within else STEERING - ({"ref_model"} if config.sync_ref_model else set())
    for name, change in changes.items():
        if name not in allowed:
            when = " within a step" if within and name in STEERING else ""
            raise ValueError(
                f"--{change}: cannot change{when} on resume from {checkpoint}; put it back, or start a new run "
                f"with --model {checkpoint}"
            )
    return list(changes.values())


def rollouts_differ(config: TrainConfig, checkpoint: Path) -> bool:
    """Checks whether `config` asks for other rollouts than those the checkpoint has sampled ahead."""
    return bool(OF_ROLLOUTS & _changes(config, checkpoint).keys())


def _changes(config: TrainConfig, checkpoint: Path) -> dict[str, str]:
    """Returns name → `name: old → new` for the options outside FREE that differ from the checkpoint's."""
    before = _saved_config(checkpoint)
    if before is None:
        return {}
    known = read_record(checkpoint).get("sources", {})
    return {
        name: f"{name}: {_shown(old)} → {_shown(new)}"
        for name, old, new in _differing(before, config)
        if name not in FREE and not (name in SOURCES and has_moved(old, new, known))
    }


def _differing(before: TrainConfig, config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Returns (name, old, new) of the options that differ by more than the spelling of a path."""
    pairs = [(name, getattr(before, name), getattr(config, name)) for name in vars(config)]
    return [
        (name, old, new)
        for name, old, new in pairs
        if old != new and not (name in SOURCES and is_same_place(old, new))
    ]


def moved_options(config: TrainConfig, checkpoint: Path) -> list[str]:
    """Returns `name: old → new` for the options whose model, data or code is at another place than when the run was saved.

    Its content is the same, so the run goes on with it.
    """
    before, known = _saved_config(checkpoint), read_record(checkpoint).get("sources", {})
    differing = [] if before is None else _differing(before, config)
    return [
        f"{name}: {_shown(old)} → {_shown(new)} (the same content)"
        for name, old, new in differing
        if name in SOURCES and has_moved(old, new, known)
    ]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _saved_config(checkpoint: Path) -> TrainConfig | None:
    saved = checkpoint / "trainer" / "config.yaml"
    if not saved.is_file() or not saved.read_text(encoding="utf-8").strip():
        return None
    return load_yaml(TrainConfig, str(saved))
