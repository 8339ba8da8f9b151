"""The exact tensors of a checkpoint. Loading a model's directory does not reproduce its tensors bit for bit.

A directory may hold weights in a narrower dtype or under other names, and `from_pretrained` recomputes buffers and
changes rows. So a checkpoint stores separately the tensors that its model files don't hold bit for bit:

    trainer/parameters.safetensors   parameters that the model files lack, or hold with different values
                                     (with an adapter, the trained ones alone, and all of them)
    trainer/buffers.safetensors      all floating-point buffers: rotary frequencies, scales, biases of routers
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..parallel import like
from ..policy.policy import Policy

PARAMETERS, BUFFERS = "parameters.safetensors", "buffers.safetensors"


def write_exact(directory: Path, policy: Policy, weights: dict[str, Tensor]) -> None:
    """Writes the tensors that the model files in `directory` don't hold bit for bit into its trainer/.

    Args:
        directory: a checkpoint whose model is written already.
        policy: the policy.
        weights: its whole parameters by name, as `gather_weights` returns them.
    """
    trained = [name for name, p in policy.model.named_parameters() if _is_kept(policy, p)]
    with _open_files(sorted(directory.glob("*.safetensors"))) as held:
        kept = {
            name: weights[name].contiguous()
            for name in trained
            if policy.lora is not None or not _holds(held, name, weights[name])
        }
    buffers = {
        name: buffer.detach().cpu().contiguous().clone()
        for name, buffer in policy.model.named_buffers()
        if buffer.is_floating_point()
    }
    for name, tensors in ((PARAMETERS, kept), (BUFFERS, buffers)):
        if tensors:
            save_file(tensors, directory / "trainer" / name)


@torch.no_grad()
def restore_exact(checkpoint: Path, policy: Policy, complete: bool = True) -> None:
    """Gives trained parameters and buffers the values, and buffers the dtypes, that a checkpoint has.

    The result is the same whatever was loaded before: the checkpoint's model, or the one that the run began with.

    Args:
        checkpoint: the checkpoint's directory.
        policy: the policy, changed in place.
        complete: whether every trained parameter must be there. False for older checkpoints (no `exact` in state.json),
            which store only what the model files lack.

    Raises:
        KeyError: a trained parameter is missing.
    """
    files = [checkpoint / "trainer" / PARAMETERS]
    if policy.lora is None:
        files = [*sorted(checkpoint.glob("*.safetensors")), *files]
    restore_parameters([file for file in files if file.is_file()], policy, complete)
    buffers = checkpoint / "trainer" / BUFFERS
    with _open_files([buffers] if buffers.is_file() else []) as held:
        for name, buffer in list(policy.model.named_buffers()):
            if name in held:
                module, _, own_name = name.rpartition(".")
                value = held[name].get_tensor(name).to(buffer.device)
                policy.model.get_submodule(module)._buffers[own_name] = value


@torch.no_grad()
def restore_parameters(files: Iterable[Path], policy: Policy, complete: bool = True) -> None:
    """Gives the parameters that a checkpoint keeps the values of safetensors files; later files win.

    Raises KeyError where `complete` and one is missing.
    """
    with _open_files(files) as held:
        for name, parameter in policy.model.named_parameters():
            if _is_kept(policy, parameter) and (complete or name in held):
                parameter.copy_(like(parameter, held[name].get_tensor(name)))


def _is_kept(policy: Policy, parameter: Tensor) -> bool:
    """Tells whether a checkpoint keeps a parameter: those beside an adapter are always loaded from --model."""
    return policy.lora is None or parameter.requires_grad


def unique(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns each tensor under the first of its names, since a safetensors file has no ties."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


@contextmanager
def _open_files(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Opens safetensors files; yields the open file of each tensor by the tensor's name. Later files win."""
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, "pt"))
            found |= dict.fromkeys(opened.keys(), opened)
        yield found


def _holds(held: dict[str, Any], name: str, tensor: Tensor) -> bool:
    if name not in held:
        return False
    written = held[name].get_tensor(name)
    return written.dtype == tensor.dtype and torch.equal(written, tensor)
