"""A run's directory: whose it is, where to resume, what changed since."""

from __future__ import annotations

import os
from pathlib import Path

from .checkpoint import newest_checkpoint
from .config import TrainConfig, load_yaml

# What a run leaves before its first checkpoint: nothing that can't be made again.
BEGUN = {"config.yaml", "error.txt", "metrics.jsonl", "completions.jsonl", "evaluations.jsonl", "batches"}


def find_checkpoint(config: TrainConfig, output: Path) -> Path | None:
    """The checkpoint to resume from, or None for a fresh start.

    Raises ValueError where the named one isn't there, or where a fresh start would write over another run's files. What a
    run leaves that failed before its first step, or with `auto` before its first checkpoint, is no obstacle.
    """
    wanted = config.resume_from_checkpoint
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output}: is a file; name a directory")
    if wanted and wanted != "auto":
        if not (Path(wanted) / "trainer" / "state.json").is_file():
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: is no complete checkpoint (it has no trainer/state.json); "
                "use `auto` for the newest one in --output_dir"
            )
        return Path(wanted)
    newest = newest_checkpoint(output) if output.exists() else None
    if wanted == "auto" and newest is not None:
        return newest
    names = {item.name for item in output.iterdir()} if output.exists() else set()
    others = {name for name in names - BEGUN if not name.endswith(".writing")}
    if wanted == "auto" and others:
        raise ValueError(
            f"--output_dir {output}: has {min(others)} but no checkpoint to resume from, and a fresh start would write over "
            "it; name another directory (a run with --save_steps N writes checkpoints)"
        )
    steps = output / "metrics.jsonl"
    if not wanted and (others or (steps.exists() and steps.stat().st_size > 0)):
        resume = ", or continue the run in it with --resume_from_checkpoint auto" if newest else ""
        raise ValueError(f"--output_dir {output}: is not empty; name another{resume}")
    return None


def claim(output: Path) -> None:
    """Make the directory. Raises ValueError where it can't be made or written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {output}: cannot be made: {error.strerror}; name another") from error
    if not os.access(output, os.W_OK):
        raise ValueError(
            f"--output_dir {output}: cannot be written to; name another, or change its permissions"
        )


def changed_options(config: TrainConfig, output: Path) -> list[str]:
    """`name: old → new` for what differs from the configuration that the run in `output` was last started with."""
    saved = output / "config.yaml"
    if not saved.is_file():
        return []
    before = load_yaml(TrainConfig, str(saved))
    ignored = {"config", "resume_from_checkpoint", "output_dir"}
    names = [name for name in vars(config) if name not in ignored]
    return [
        f"{name}: {getattr(before, name)} → {getattr(config, name)}"
        for name in names
        if getattr(before, name) != getattr(config, name)
    ]
