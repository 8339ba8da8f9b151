"""One process, or many under `torchrun`: the only module that knows ranks and calls torch.distributed.

The principle: **data is on every rank, work and weights are not.** Each rank samples and scores its share of the
prompts, and computes its share of an update's rows; what it finds is gathered, in the order of ranks, by all. So every
rank holds the whole step (some tens of bytes a token), plans it by the same pure functions, and comes to the same
decisions; only parameters, gradients and optimizer state are sharded, by FSDP2.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from .types import Metric, Metrics

T = TypeVar("T")

PEER_WAIT = 5.0  # seconds that a rank waits for word of the others when a collective has failed


class FailedOnSomeRank(RuntimeError):
    """A rank has failed in a place where all wait for each other: that one has a cause, the others have none."""


@dataclass(frozen=True)
class World:
    """The ranks of a run as one of them sees them. `World()` is one process alone: every method is then trivial."""

    rank: int = 0
    size: int = 1
    store: Any = None  # torch's key-value store, for word of a failure when collectives don't work any more
    timeout: float = 600.0  # seconds

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that speaks and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of `items`: neighbouring ones, as many for each rank as for any other, give or take one."""
        bounds = [len(items) * r // self.size for r in (self.rank, self.rank + 1)]
        return list(items[slice(*bounds)])

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Every rank's payload, by rank. All ranks must call it."""
        if self.size == 1:
            return [payload]
        import torch.distributed as dist

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(payload)]))
        width = max(int(n) for n in sizes)
        mine = torch.zeros(width, dtype=torch.uint8)
        mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, sizes, strict=True)]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Every rank's tensors by name, on the CPU, by rank."""
        if self.size == 1:
            return [dict(tensors)]
        payload = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        return [load(part) for part in self.gather_bytes(payload)]

    def gather_by_index(self, found: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Values by row, row index → [T_i], of all ranks together."""
        if self.size == 1:
            return dict(found)
        lengths = torch.tensor([len(values) for values in found.values()], dtype=torch.int64)
        flat = {"rows": torch.tensor(list(found), dtype=torch.int64), "lengths": lengths}
        if found:
            flat["values"] = torch.cat(list(found.values()))
        joined: dict[int, Tensor] = {}
        for part in self.gather_tensors(flat):
            if len(part["rows"]):
                pieces = part["values"].split(part["lengths"].tolist())
                joined |= dict(zip(part["rows"].tolist(), pieces, strict=True))
        return joined

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's value (whatever JSON can hold; tuples come back as lists), by rank."""
        if self.size == 1:
            return [value]
        return [json.loads(part) for part in self.gather_bytes(json.dumps(value).encode())]

    def join_metrics(self, metrics: Metrics) -> Metrics:
        """The metrics of all ranks together, the same on each."""
        if self.size == 1:
            return metrics
        joined: Metrics = {}
        for part in self.gather_json({name: metric.to_json() for name, metric in metrics.items()}):
            for name, written in part.items():
                metric = Metric.from_json(written)
                joined[name] = joined[name] + metric if name in joined else metric
        return joined

    def from_main(self, value: Any) -> Any:
        """The main rank's `value` (whatever JSON can hold) on every rank."""
        return self.gather_json(value)[0]

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        said = torch.tensor([value])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self.largest(int(flag)) > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside fails on every rank or on none: where one raises, all raise Together."""
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, once all ranks know
            failed = error
        if self.any(failed is not None):
            raise FailedOnSomeRank(whereabouts(self)) from failed

    # ------------------------------------------------------------------- when something fails

    def is_first_to_fail(self) -> bool:
        """Whether no other rank has failed by itself before: then this one tells the user."""
        return self.store is None or _reached(lambda: self.store.add("failed", 1) == 1, True)

    def lost_peer(self) -> str | None:
        """After a failed collective: what to tell the user, or None where another rank tells."""
        alive = f"alive/{self.rank}"
        deadline = time.monotonic() + PEER_WAIT
        try:
            self.store.set(alive, "1")
            while time.monotonic() < deadline:
                if self.store.add("failed", 0) > 0:
                    return None  # a rank that failed by itself tells why
                time.sleep(0.1)
            gone = [r for r in range(self.size) if not self.store.check([f"alive/{r}"])]
            if self.store.add("told", 1) > 1:
                return None
        except (RuntimeError, OSError):
            return "the host of rank 0 cannot be reached any more"
        ranks = ", ".join(str(r) for r in gone)
        if not gone:
            return f"a collective did not end within --ddp_timeout {self.timeout:g} seconds"
        return f"rank {ranks} of {self.size} is gone (killed, out of memory, or cut off), so the others cannot go on"


ALONE = World()


def _reached(ask: Any, otherwise: bool) -> bool:
    try:
        return ask()
    except (RuntimeError, OSError):  # the store's host is gone
        return otherwise


def from_torchrun() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarts() -> int:
    """How often `torchrun --max-restarts` has started this run anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined_world(timeout: float) -> Iterator[World]:
    """The world that torchrun's environment describes, left in order at the end; one process alone without it."""
    if not from_torchrun():
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if "RANK" not in os.environ:
        size = os.environ["WORLD_SIZE"]
        raise ValueError(
            f"WORLD_SIZE {size}: is set, but RANK is not; start with `torchrun --nproc-per-node {size} -m grpokit train "
            "...`, or unset it"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    limit = timedelta(seconds=timeout)
    store, rank, size = next(iter(rendezvous("env://", timeout=limit)))
    dist.init_process_group(
        backend, store=PrefixStore(f"ranks/{restarts()}", store), rank=rank, world_size=size, timeout=limit
    )
    try:
        yield World(rank, size, PrefixStore(f"failures/{restarts()}", store), timeout)
    finally:
        dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End a rank's process at once. Threads of torch's outlive its process group, and now and then they abort the
    interpreter's own way out, after all is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error is a collective's, which only says that another rank went away or is late."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Timed out waiting", "NCCL", "Broken pipe", "Socket")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def whereabouts(world: World) -> str:
    """`rank 2 of 4 on host`, for messages."""
    return f"rank {world.rank} of {world.size} on {socket.gethostname()}"


# --------------------------------------------------------------------------- sharding


def shard(
    policy: nn.Module,
    layers: Sequence[nn.Module],
    world: World,
    shard_size: int,
    compute: torch.dtype,
    master: torch.dtype,
) -> None:
    """Shard a policy's parameters over the ranks by FSDP2: a group for each layer, and the root's for the rest.

    Gradients are summed, never averaged: they are of shares of one loss. They're reduced in `master`, the type of the
    parameters, and the layers compute in `compute`.
    `shard_size` ranks hold one copy of the weights; with fewer than all, the copies are replicas (hybrid sharding).
    """
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    inside = shard_size or world.size
    if inside == world.size:
        mesh = init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (world.size // inside, inside), mesh_dim_names=("replicate", "shard"))
    # Layers are gathered in the type in which autocast would compute anyway: half the traffic, the same rounding of
    # every matmul. Inputs stay as they are, and the root's embedding and head stay whole: log-probs need them.
    low = None if compute == master else compute
    halved = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=master, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=halved)
    fully_shard(
        policy, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=master, cast_forward_inputs=False)
    )
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor in it


def reshard(policy: nn.Module) -> None:
    """Let go of gathered weights. While they are there, `parameters()` are they, and not the ones that are trained."""
    for module in _sharded(policy):
        module.reshard()


def _sharded(policy: nn.Module) -> list[Any]:
    return [module for module in policy.modules() if hasattr(module, "reshard")]  # FSDP2's


@contextmanager
def unsharded(policy: nn.Module) -> Iterator[None]:
    """Gather all weights once; inside, forwards of the model or of its parts run without collectives.

    Every rank must enter and leave it. Nothing to do where nothing is sharded.
    """
    parts = _sharded(policy)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not policy, recurse=False)
        reshard(policy)


def full(tensor: Tensor) -> Tensor:
    """A tensor whole, whatever part of it this rank holds. All ranks must call it where it's sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value`, whole on every rank, as a tensor that is sharded as `parameter` is."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
