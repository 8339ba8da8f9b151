"""Writes the policy as a Hugging Face directory, which from_pretrained and vLLM load, or streams its weights to an engine."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..common.console import quiet_transformers
from ..common.shards import full
from ..parallel import ALONE, World
from .lora import merge_adapter, write_adapter
from .policy import DTYPES, Policy


@dataclass(frozen=True)
class SaveFormat:
    """How a policy is saved: the dtype, and whether only its adapter is written.

    Example:
        >>> SaveFormat(dtype="bfloat16")  # weights with the adapter merged in
        SaveFormat(dtype='bfloat16', only_adapter=False)
    """

    dtype: str | None = None  # None: as loaded; for an adapter, as trained
    only_adapter: bool = False  # False: an adapter is merged into the base weights


def save_model(
    path: Path,
    policy: Policy,
    tokenizer: Any,
    save_format: SaveFormat,
    world: World = ALONE,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes a Hugging Face directory atomically. A collective.

    Args:
        path: the directory; created, or replaced as a whole.
        policy: the policy.
        tokenizer: the tokenizer, which is saved with it.
        save_format: dtype, and whether only the adapter is written.
        world: the ranks. Only the main one writes.
        texts: further files: name → content.

    Raises:
        OSError: the directory cannot be written (FailedOnSomeRank among several ranks).
    """
    weights = gather_weights(policy, save_format, world)

    def write(directory: Path) -> None:
        write_model(directory, weights, policy, tokenizer, save_format)
        for name, text in (texts or {}).items():
            (directory / name).write_text(text, encoding="utf-8")

    with world.together():
        if world.is_main:
            atomically(path, write)


def gather_weights(policy: Policy, save_format: SaveFormat, world: World) -> dict[str, Tensor]:
    """Gathers the part of the state dict that `save_format` needs, on the main rank. A collective."""
    weights = policy.model.state_dict(keep_vars=True)
    if save_format.only_adapter:
        weights = {name: tensor for name, tensor in weights.items() if tensor.requires_grad}
    return gather_to_main(weights, world)


def write_model(
    directory: Path, weights: dict[str, Tensor], policy: Policy, tokenizer: Any, save_format: SaveFormat
) -> None:
    """Writes gathered weights with the model's config and tokenizer.

    Args:
        directory: an empty directory.
        weights: what `gather_weights` returned.
        policy: the policy.
        tokenizer: the tokenizer.
        save_format: as given to `gather_weights`.
    """
    model, dtype = policy.model, saved_dtype(policy, save_format)
    tokenizer.save_pretrained(directory)
    if save_format.only_adapter:
        assert policy.lora is not None
        return write_adapter(directory, weights, policy.lora, dtype)
    weights = dict(merge_adapter(weights, model, lambda tensor: tensor))
    narrowed: dict[int, Tensor] = {id(t): narrow(policy, name, t, dtype) for name, t in weights.items()}
    written = copy.copy(model)  # save_pretrained changes its model's config: this one's is a copy
    written.config = copy.deepcopy(model.config)
    written.config.dtype = dtype
    if model.can_generate():
        written.generation_config = _AsGiven(model.generation_config)
    with quiet_transformers():
        written.save_pretrained(directory, state_dict={name: narrowed[id(t)] for name, t in weights.items()})
    # save_pretrained writes the parameters' dtype into config.json. The saved weights have this one, and a resumed run must
    # save them in it too.
    described = directory / "config.json"
    record = json.loads(described.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    described.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def narrow(policy: Policy, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a tensor to the dtype that it has in files and engines.

    One that its directory keeps in a wider dtype, such as a router's bias in float32, stays in it.

    Args:
        policy: the policy.
        name: the tensor's name.
        tensor: the tensor.
        dtype: the dtype of most tensors.

    Returns:
        The tensor; integers as they are.
    """
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(dtype, policy.other_dtypes.get(name, dtype)))


class _AsGiven:
    """A generation_config that is saved as it was loaded. transformers would refuse to write some that it reads.

    The policy never samples by it, so nothing here depends on whether its values go together.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def save_pretrained(self, directory: str | Path, **_: Any) -> None:
        """Writes generation_config.json."""
        written = copy.deepcopy(self.config)
        written.compile_config = None  # an object that JSON can't hold
        written.to_json_file(Path(directory) / "generation_config.json", use_diff=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def saved_dtype(policy: Policy, save_format: SaveFormat) -> torch.dtype:
    """Returns the dtype of saved weights.

    It is the one asked for, else the one loaded. A float64 run keeps float64, and an adapter the dtype that it is trained in.
    """
    if save_format.dtype is not None:
        return DTYPES[save_format.dtype]
    if policy.compute_dtype == torch.float64:
        return torch.float64
    return torch.float32 if save_format.only_adapter else policy.stored_dtype


def engine_format(policy: Policy, only_adapter: bool = False) -> SaveFormat:
    """Returns how another engine gets the weights: in the compute dtype, whatever dtype checkpoints have.

    A narrower dtype would hide small steps from the engine. And a resumed run must send the same weights as before, whatever
    dtype its checkpoint was saved in.
    """
    compute = str(policy.compute_dtype).removeprefix("torch.")
    return SaveFormat(None if only_adapter else compute, only_adapter)


def stream(policy: Policy, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yields the policy's weights one at a time, under the names of its directory, in the dtype of `engine_format`.

    Tied weights come once, and an adapter is merged in. The tensors are on the policy's device. A collective, unless
    `shapes_only`: then the tensors are on torch's meta device, and nothing is gathered.

    Raises:
        ValueError: the model stores its weights in another form than its directory, such as stacked experts.
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
        yield name, narrow(policy, name, tensor, dtype)


def gather_to_main(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Gathers tensors to the CPU of the main rank.

    One at a time, so the other ranks never hold more than one whole tensor.
    """
    found: dict[int, Tensor] = {}  # tied weights are one tensor with two names
    for tensor in tensors.values():
        if id(tensor) not in found:
            whole = full(tensor.detach())
            found[id(tensor)] = whole.cpu().contiguous() if world.is_main else whole.new_empty(0)
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a directory under a temporary name, syncs it, reads it back, and renames it.

    Raises:
        OSError: it could not be written. Nothing is left behind.
    """
    temporary, old = (path.with_name(f".{path.name}.{what}") for what in ("writing", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for file in [*temporary.rglob("*"), temporary]:
            _sync(file)
            if file.suffix == ".safetensors":
                with safe_open(file, "np") as readable:  # the header must fit the file's length
                    readable.keys()
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except Exception as error:  # the tokenizers library has no error class for a full disk
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
