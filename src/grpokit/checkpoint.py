"""Checkpoints: a Hugging Face directory, and beside it all that an exact resume needs. Nothing is pickled.

    checkpoint-40/
        config.json  model.safetensors  tokenizer.json ...     what from_pretrained and vLLM load
        trainer/state.json             steps done, optimizer steps, the random state of Python
        trainer/optimizer.safetensors  AdamW's moments, by parameter name
        trainer/parameters.safetensors the parameters in full precision, where the model is saved in less
        trainer/random.safetensors     the random state of numpy and torch (a reward function may use it)

A directory is written under a temporary name, synced, and renamed, so a name that exists is whole.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import DTYPES, Policy

FORMAT = 1  # of the trainer directory; raised when its contents change


@dataclass(frozen=True)
class TrainState:
    """Where a run stands between two steps."""

    step: int = 0  # steps done; also the position in the prompt order, in units of prompts_per_step


def save_model(path: Path, policy: Policy, tokenizer: Any, save_dtype: str | None) -> None:
    """Write a Hugging Face directory to `path` (made, or replaced whole)."""
    _atomically(path, lambda directory: _write_model(directory, policy, tokenizer, save_dtype))


def save_checkpoint(
    path: Path,
    state: TrainState,
    policy: Policy,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    save_dtype: str | None,
) -> None:
    """Write `checkpoint-N/` to `path`: the model, and all that an exact resume needs."""

    def write(directory: Path) -> None:
        _write_model(directory, policy, tokenizer, save_dtype)
        trainer = directory / "trainer"
        trainer.mkdir()
        parameters = dict(policy.model.named_parameters())
        if saved_dtype(policy, save_dtype) != next(iter(parameters.values())).dtype:
            save_file(
                {n: p.detach().cpu().contiguous() for n, p in parameters.items()},
                trainer / "parameters.safetensors",
            )
        save_file(_optimizer_tensors(policy, optimizer), trainer / "optimizer.safetensors")
        numpy_state: Any = np.random.get_state(legacy=True)  # (name, [624] uint32, position, ...)
        save_file(
            {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy_state[1].astype(np.int64))},
            trainer / "random.safetensors",
        )
        record = {
            "format": FORMAT,
            "step": state.step,
            "policy_version": policy.version,
            "python_random": random.getstate(),
            "numpy_random": [numpy_state[0], *numpy_state[2:]],
        }
        (trainer / "state.json").write_text(json.dumps(record))

    _atomically(path, write)


def load_checkpoint(path: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> TrainState:
    """Bring optimizer, full-precision parameters and random state back from `path`; the model is loaded already.

    Raises ValueError naming the file where it is missing or not this format's.
    """
    trainer = path / "trainer"
    try:
        record = json.loads((trainer / "state.json").read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}; this version of grpokit reads format {FORMAT}")
        tensors = load_file(trainer / "optimizer.safetensors")
        noise = load_file(trainer / "random.safetensors")
        full = trainer / "parameters.safetensors"
        exact = load_file(full) if full.exists() else {}
    except Exception as error:  # safetensors has an error class of its own for each kind of damage
        raise ValueError(f"--resume_from_checkpoint {path}: cannot be resumed from: {error}") from error
    parameters = dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, value in exact.items():
            parameters[name].copy_(value)
    for name, parameter in parameters.items():
        slots = {key.split("/", 1)[0]: v for key, v in tensors.items() if key.split("/", 1)[1] == name}
        if slots:
            optimizer.state[parameter] = {
                slot: value if slot == "step" else value.to(parameter.device) for slot, value in slots.items()
            }
    policy.version = record["policy_version"]
    random.setstate(_tuples(record["python_random"]))
    kind, *rest = record["numpy_random"]
    np.random.set_state((kind, noise["numpy"].numpy().astype(np.uint32), *rest))
    torch.set_rng_state(noise["torch"])
    return TrainState(record["step"])


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint with the most steps in a run's directory, or None."""
    found = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    whole = [p for p in found if (p / "trainer" / "state.json").is_file()]
    return max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)


def saved_dtype(policy: Policy, save_dtype: str | None) -> torch.dtype:
    """Type of saved weights: as asked for, else as loaded; a float64 run keeps float64."""
    if save_dtype is not None:
        return DTYPES[save_dtype]
    return torch.float64 if policy.compute_dtype == torch.float64 else policy.stored_dtype


def _write_model(directory: Path, policy: Policy, tokenizer: Any, save_dtype: str | None) -> None:
    model, dtype = policy.model, saved_dtype(policy, save_dtype)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    shown, model.config.dtype = model.config.dtype, dtype
    try:
        model.save_pretrained(directory, state_dict=state)
    finally:
        model.config.dtype = shown
    tokenizer.save_pretrained(directory)


def _optimizer_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in policy.model.named_parameters()}
    return {
        f"{slot}/{names[parameter]}": value.detach().cpu().contiguous()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def _atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in [*temporary.rglob("*"), temporary]:
        _sync(file)
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
