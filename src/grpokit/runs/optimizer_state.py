"""The optimizer's state in a checkpoint: its tensors by `slot/parameter`, and its plain numbers. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..parallel import World, like
from ..policy.export import gather_to_main
from ..policy.optimizer import OWN
from ..policy.policy import Policy


def gather_optimizer(
    policy: Policy, optimizer: torch.optim.Optimizer, world: World
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gathers the optimizer's tensors on the main rank, and describes the rest for state.json. A collective.

    The state of an optimizer that works on shards (`rank_local`) is stored for each rank, under `RANK:slot/parameter`.

    Raises:
        ValueError: the optimizer keeps something else than tensors and numbers.
    """
    tensors, numbers = _split(policy, optimizer)
    described: dict[str, Any] = {"optimizer": numbers, "optimizer_groups": _group_numbers(optimizer)}
    if not is_rank_local(optimizer):
        return gather_to_main(tensors, world), described
    found: dict[str, Tensor] = {}
    for (
        name,
        _,
    ) in policy.model.named_parameters():  # one at a time, because every rank receives all ranks' tensors
        mine = {key: value for key, value in tensors.items() if key.endswith(f"/{name}")}
        for rank, part in enumerate(world.gather_tensors(mine)):
            if world.is_main:
                found |= {f"{rank}:{key}": value.detach().cpu().contiguous() for key, value in part.items()}
    # A rank without a part of a parameter has no step for it.
    described["optimizer"] = {
        f"{rank}:{key}": value
        for rank, part in enumerate(world.gather_json(numbers))
        for key, value in part.items()
    }
    return found, {**described, "optimizer_layout": layout_of(policy, world)}


def restore_optimizer(
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    world: World,
) -> None:
    """Gives the optimizer the state of a checkpoint.

    Args:
        tensors: those of optimizer.safetensors.
        record: the checkpoint's state.json.
        policy: the policy, for its parameters' names.
        optimizer: changed in place.
        world: the ranks.

    Raises:
        ValueError: the state follows the shards, and was saved on another layout of ranks.
    """
    values = {**tensors, **record.get("optimizer", {})}
    if is_rank_local(optimizer):
        saved, here = record.get("optimizer_layout"), layout_of(policy, world)
        if saved != here:
            raise ValueError(
                f"--optim adamw_8bit: its moments are stored in blocks that follow the shards of {_shown(saved)}, and this "
                f"run has {_shown(here)}; resume on the same layout, or start a new run from the checkpoint's weights"
            )
        own = f"{world.rank}:"
        values = {key.removeprefix(own): value for key, value in values.items() if key.startswith(own)}
    slots: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        slot, name = key.split("/", 1)
        slots.setdefault(name, {})[slot] = value
    for name, parameter in policy.model.named_parameters():
        if name in slots:
            optimizer.state[parameter] = {
                slot: _placed(parameter, slot, value, is_rank_local(optimizer))
                for slot, value in slots[name].items()
            }
    for group, saved in zip(optimizer.param_groups, record.get("optimizer_groups", []), strict=False):
        group |= saved


def is_rank_local(optimizer: torch.optim.Optimizer) -> bool:
    """Tells whether each rank's state is stored by itself, because it can't be gathered into whole tensors."""
    return getattr(optimizer, "rank_local", False)


def layout_of(policy: Policy, world: World) -> list[int]:
    """Returns the number of ranks, and how many of them share one copy of the weights."""
    meshes = [p.device_mesh.shape for p in policy.parameters() if hasattr(p, "device_mesh")]  # pyright: ignore[reportAttributeAccessIssue]
    return [world.size, meshes[0][-1] if meshes else 1]


def _shown(layout: Any) -> str:
    return "unknown ranks" if not layout else f"{layout[0]} ranks ({layout[1]} to a copy of the weights)"


def _placed(parameter: Tensor, slot: str, value: Any, is_local: bool) -> Any:
    """Puts a slot's value where the optimizer needs it: sharded as the parameter, where it has its shape."""
    if not isinstance(value, Tensor) or slot == "step":
        return value
    if is_local:
        return value.to(parameter.device)
    return like(parameter, value) if value.shape == parameter.shape else value


def _split(policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimizer's state by `slot/parameter`: its tensors, and the plain numbers of an optimizer of one's own.

    Raises ValueError where a slot holds anything else, since nothing is pickled.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, parameter in policy.model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{slot}/{name}"] = value
            elif isinstance(value, int | float):
                numbers[f"{slot}/{name}"] = value
            elif value is not None:
                raise ValueError(
                    f"--optim: {type(optimizer).__name__} keeps a {type(value).__name__} as {slot!r}; a checkpoint can "
                    "hold tensors and numbers"
                )
    return tensors, numbers


def _group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The numbers that an optimizer of one's own keeps with its parameter groups, such as Prodigy's `d`.

    Those of grpokit's own are options, which follow the configuration.
    """
    if type(optimizer) in OWN:
        return []
    scheduled = ("lr", "initial_lr")
    return [
        {name: v for name, v in group.items() if isinstance(v, int | float) and name not in scheduled}
        for group in optimizer.param_groups
    ]
