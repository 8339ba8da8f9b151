"""The policy as a Hugging Face directory, which from_pretrained and vLLM load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..parallel import ALONE, World, full
from .lora import merge_adapter, write_adapter
from .policy import DTYPES, Policy


@dataclass(frozen=True)
class SaveFormat:
    """How a policy is saved."""

    dtype: str | None = None  # as loaded; of an adapter, as it is trained
    only_adapter: bool = False  # else an adapter is added to the weights that it stands beside


def save_model(
    path: Path, policy: Policy, tokenizer: Any, save_format: SaveFormat, world: World = ALONE
) -> None:
    """Write a Hugging Face directory to `path` (made, or replaced whole). Raises OSError where it can't be written."""
    weights = gather_weights(policy, save_format, world)
    if world.is_main:
        atomically(path, lambda directory: write_model(directory, weights, policy, tokenizer, save_format))


def gather_weights(policy: Policy, save_format: SaveFormat, world: World) -> dict[str, Tensor]:
    """The part of the policy's state dict that `form` needs, gathered on the main rank. All ranks call it."""
    weights = policy.model.state_dict(keep_vars=True)
    if save_format.only_adapter:
        weights = {name: tensor for name, tensor in weights.items() if tensor.requires_grad}
    return gather_to_main(weights, world)


def write_model(
    directory: Path, weights: dict[str, Tensor], policy: Policy, tokenizer: Any, save_format: SaveFormat
) -> None:
    """Write weights that `gather_weights` gave, with the model's config and tokenizer, into an empty directory."""
    model, dtype = policy.model, saved_dtype(policy, save_format)
    tokenizer.save_pretrained(directory)
    if save_format.only_adapter:
        assert policy.lora is not None
        return write_adapter(directory, weights, policy.lora, dtype)
    weights = dict(merge_adapter(weights, model, lambda tensor: tensor))
    narrowed: dict[int, Tensor] = {
        id(t): t.to(dtype) if t.is_floating_point() else t for t in weights.values()
    }
    shown, model.config.dtype = model.config.dtype, dtype
    try:
        model.save_pretrained(directory, state_dict={name: narrowed[id(t)] for name, t in weights.items()})
    finally:
        model.config.dtype = shown
    # save_pretrained writes the parameters' type; the weights beside it are of this one, and a resumed run saves them so.
    described = directory / "config.json"
    record = json.loads(described.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    described.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def saved_dtype(policy: Policy, save_format: SaveFormat) -> torch.dtype:
    """Type of saved weights: as asked for, else as loaded; a float64 run keeps float64, an adapter what it's trained in."""
    if save_format.dtype is not None:
        return DTYPES[save_format.dtype]
    if policy.compute_dtype == torch.float64:
        return torch.float64
    return torch.float32 if save_format.only_adapter else policy.stored_dtype


def engine_format(policy: Policy, only_adapter: bool = False) -> SaveFormat:
    """How another engine gets the weights: in the type that the policy computes in, whatever type they are saved in.

    Less would hide small steps from it; and what a resumed run sends must not depend on what a checkpoint was saved in.
    """
    compute = str(policy.compute_dtype).removeprefix("torch.")
    return SaveFormat(None if only_adapter else compute, only_adapter)


def stream(policy: Policy, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the names of its directory, whole and as `engine_format` says, one at a time.

    Tied weights come once, an adapter is in them. On the device; all ranks must go through it together, unless it's for
    `shapes_only`: then the tensors are on torch's meta device, and nothing is gathered. Raises ValueError where a
    directory would have them in another form, as experts that the model has stacked.
    """
    if getattr(policy.model, "_weight_conversions", None):
        raise ValueError(
            f"{type(policy.model).__name__} keeps its weights in another form than its directory; use --vllm_sync files"
        )
    dtype, seen = saved_dtype(policy, engine_format(policy)), set()
    weights = {}
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            weights[name] = tensor
        seen.add(id(tensor))

    def described(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def gathered(tensor: Tensor) -> Tensor:
        return full(tensor.detach())

    for name, tensor in merge_adapter(weights, policy.model, described if shapes_only else gathered):
        yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def gather_to_main(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Tensors whole and on the CPU, on the main rank only: one at a time, so that no other holds more than that."""
    found: dict[int, Tensor] = {}  # tied weights are one tensor with two names
    for tensor in tensors.values():
        if id(tensor) not in found:
            whole = full(tensor.detach())
            found[id(tensor)] = whole.cpu().contiguous() if world.is_main else whole.new_empty(0)
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """A directory under a temporary name, synced, read again, renamed. Raises OSError with nothing left behind."""
    temporary, old = (path.with_name(f".{path.name}.{what}") for what in ("writing", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for file in [*temporary.rglob("*"), temporary]:
            _sync(file)
            if file.suffix == ".safetensors":
                with safe_open(file, "np") as readable:  # its header must fit its length
                    readable.keys()
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except Exception as error:  # the tokenizers library has no class for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError | SafetensorError) or "os error" in str(error)):
            raise
        raise OSError(f"{path}: could not be written: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
