"""Ranks, under `torchrun` or alone: the only module that calls torch.distributed.

The principle: **every rank has all data; work and weights are divided.** Each rank samples and scores its share of prompts,
and computes its share of an update's samples. All ranks gather the results, in rank order. So every rank holds the whole
step, and makes the same decisions. Only parameters, gradients and optimizer state are sharded, by FSDP2.
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

PEER_WAIT = 5.0  # seconds that a rank waits for news of the others after a failed collective


class FailedOnSomeRank(RuntimeError):
    """A rank has failed where all ranks wait for each other. Only on that rank does this error have a cause."""


@dataclass(frozen=True)
class World:
    """The ranks of a run, as seen by one of them. `World()` is a single process, for which every method is trivial.

    Example:
        >>> World(rank=1, size=2).share(["a", "b", "c"])
        ['b', 'c']
    """

    rank: int = 0
    size: int = 1
    store: Any = None  # torch's key-value store, for news of a failure when collectives no longer work
    timeout: float = 600.0  # seconds, for each collective

    @property
    def is_main(self) -> bool:
        """Checks whether this rank prints messages and writes files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Returns this rank's part of `items`: neighbours, and equally many on every rank, give or take one."""
        bounds = [len(items) * r // self.size for r in (self.rank, self.rank + 1)]
        return list(items[slice(*bounds)])

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Gathers every rank's payload, in rank order. A collective."""
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
        """Gathers every rank's tensors by name, on the CPU, in rank order. A collective."""
        if self.size == 1:
            return [dict(tensors)]
        payload = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        return [load(part) for part in self.gather_bytes(payload)]

    def gather_by_index(self, found: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Gathers every rank's values by sample: sample index → [T_i]. A collective."""
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
        """Gathers every rank's JSON value, in rank order. Tuples become lists. A collective."""
        if self.size == 1:
            return [value]
        return [json.loads(part) for part in self.gather_bytes(json.dumps(value).encode())]

    def join_metrics(self, metrics: Metrics) -> Metrics:
        """Joins the metrics of all ranks. The result is the same on each. A collective."""
        if self.size == 1:
            return metrics
        joined: Metrics = {}
        for part in self.gather_json({name: metric.to_json() for name, metric in metrics.items()}):
            for name, written in part.items():
                metric = Metric.from_json(written)
                joined[name] = joined[name] + metric if name in joined else metric
        return joined

    def from_main(self, value: Any) -> Any:
        """Returns the main rank's JSON value on every rank. A collective."""
        return self.gather_json(value)[0]

    def largest(self, value: int) -> int:
        """Returns the largest of the ranks' values. A collective."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        said = torch.tensor([value])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def any(self, flag: bool) -> bool:
        """Checks whether `flag` is true on any rank. A collective."""
        return self.largest(int(flag)) > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails on every rank or on none: if one raises, all raise FailedOnSomeRank. Blocks nest. A collective."""
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, once all ranks know
            failed = error
        if self.any(failed is not None):
            cause = failed.__cause__ if isinstance(failed, FailedOnSomeRank) else failed
            raise FailedOnSomeRank(whereabouts(self)) from cause

    # ------------------------------------------------------------------- when something fails

    def is_first_to_fail(self) -> bool:
        """Checks whether this rank failed first. If so, it tells the user."""
        return self.store is None or _reached(lambda: self.store.add("failed", 1) == 1, True)

    def lost_peer(self) -> str | None:
        """Returns the message for the user after a failed collective, or None where another rank prints it."""
        alive = f"alive/{self.rank}"
        deadline = time.monotonic() + PEER_WAIT
        try:
            self.store.set(alive, "1")
            while time.monotonic() < deadline:
                if self.store.add("failed", 0) > 0:
                    return None  # a rank that failed first gives the reason
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
    """Checks whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarts() -> int:
    """Returns how often `torchrun --max-restarts` has restarted this run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined_world(timeout: float) -> Iterator[World]:
    """Joins the process group that torchrun's environment describes, and leaves it at the end.

    Yields a single-process world without that environment.
    """
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
    """Ends a rank's process at once.

    Some threads of torch outlive its process group, and sometimes they abort the interpreter's normal exit.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_lost_connection(error: BaseException) -> bool:
    """Checks whether an error is a collective's, which only says that another rank is gone or late."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Timed out waiting", "NCCL", "Broken pipe", "Socket")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def whereabouts(world: World) -> str:
    """Returns `rank 2 of 4 on host`, for messages."""
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
    """Shards a policy's parameters over the ranks by FSDP2: a group per layer, and the root's for the rest.

    Gradients are summed, never averaged, because they belong to shares of one loss. 4-bit weights are packed bytes that cannot
    be sharded, so every rank keeps all of them.

    Args:
        policy: the module to shard, in place.
        layers: the parts that are gathered one at a time.
        world: the ranks.
        shard_size: the ranks that hold one copy of the weights; 0: all. With fewer, the copies are replicas.
        compute: the dtype in which layers are gathered and computed.
        master: the dtype of the parameters, in which gradients are reduced.
    """
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    kind, inside = default_device().type, shard_size or world.size
    if inside == world.size:
        mesh = init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (world.size // inside, inside), mesh_dim_names=("replicate", "shard"))
    # Layers are gathered in the dtype in which autocast would compute anyway: half the traffic, and every matmul rounds as
    # before. Inputs are not cast. The root's embedding and head keep the master dtype: log-probs need it.
    low = None if compute == master else compute
    halved = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=master, cast_forward_inputs=False)
    ignored = {p for p in policy.parameters() if not p.is_floating_point()}
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=halved, ignored_params=ignored)
    whole = MixedPrecisionPolicy(reduce_dtype=master, cast_forward_inputs=False)
    fully_shard(policy, mesh=mesh, mp_policy=whole, ignored_params=ignored)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor


def reshard(policy: nn.Module) -> None:
    """Frees the gathered weights, after forwards without a backward. Until then `parameters()` returns gathered copies.

    FSDP2 notes each forward, to gather ahead in the backward. Notes without one are forgotten: ranks may differ in them.
    """
    for module in _sharded(policy):
        module.reshard()
        module._get_fsdp_state()._comm_ctx.post_forward_order.clear()


def _sharded(policy: nn.Module) -> list[Any]:
    return [module for module in policy.modules() if hasattr(module, "reshard")]  # FSDP2's


@contextmanager
def unsharded(policy: nn.Module) -> Iterator[None]:
    """Gathers all weights once. Inside the block, forwards of the model or of its parts need no collective.

    All ranks enter and leave it. Does nothing where nothing is sharded.
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


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """Shards `value`, which every rank holds whole, in the same way as `parameter`."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def default_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
