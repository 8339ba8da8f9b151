"""Sends weights to a vLLM server from GPU to GPU, by vLLM's own transfer over NCCL (vLLM 0.32), instead of files.

Needs GPUs on both sides, and vLLM in the trainer's environment, because its half of the transfer is vLLM's code too.
Written against vLLM's source and not measured. The tests, which have no GPU, only check that the announced weights are
the ones sent.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from ...parallel import World
from ...policy.export import stream
from ...policy.policy import Policy
from .server import HELLO, Server, Unreachable

START_FOR_NCCL = 'start it with --weight-transfer-config \'{"backend": "nccl"}\''


class NcclServer(Server):
    """A `Server` that rank 0 of the trainer sends weights to. A restart of the server ends the run."""

    def __init__(self, url: str, timeout: float, directory: Path) -> None:
        """Raises ValueError where no vLLM server answers, or vLLM or a GPU is missing here."""
        try:
            import vllm.distributed.weight_transfer.nccl_engine  # pyright: ignore[reportMissingImports] # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"--vllm_sync nccl: vLLM cannot be imported here ({error}), and its transfer is used on both sides; install "
                "grpokit in vLLM's environment, or use --vllm_sync files"
            ) from error
        if not torch.cuda.is_available():
            raise ValueError("--vllm_sync nccl: there is no GPU here; use --vllm_sync files")
        super().__init__(url, timeout, directory)
        self.transfer: Any = None

    def take(self, policy: Policy, tokenizer: Any, world: World) -> None:
        """See `Engine.take`. Raises ValueError where the server does not support the transfer."""
        self.tag = world.from_main(uuid.uuid4().hex[:16])
        if self.transfer is None:
            self.transfer = self._connected(policy, world)
        if world.is_main:
            self._ask("POST", "/pause?mode=wait")
        try:
            with torch.no_grad():
                self.transfer.send_weights()  # all ranks gather, the main one sends
        except (RuntimeError, OSError) as error:  # a refusal over HTTP is an OSError too
            raise ValueError(f"--vllm_sync nccl: {self.url} was not sent the weights: {error}") from error
        finally:
            if world.is_main:
                self._run(self._resume)
        if world.is_main:
            self._ask("POST", "/update_weight_version", {"new_version": f"{self.tag}-nccl"})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Retries while the server is away. Raises ValueError naming it where it stays away."""
        return self._run(lambda c: self._persist("the weights", lambda: self._send(c, method, path, body)))

    async def _resume(self, client: httpx.AsyncClient) -> None:
        with contextlib.suppress(Unreachable, ValueError):  # the first error is the one to report
            await self._send(client, "POST", "/reset_prefix_cache")
            await self._send(client, "POST", "/resume")

    async def _ensure_weights(self, client: httpx.AsyncClient) -> str:
        has = str((await self._send(client, "GET", "/weight_info")).get("weight_version"))
        if not has.startswith(self.tag + "-"):
            raise ValueError(
                f"--vllm_url {self.url}: was restarted and has lost the transfer of weights; restart the run too "
                "(--resume_from_checkpoint auto), or use --vllm_sync files, which survives that"
            )
        return has

    def _connected(self, policy: Policy, world: World) -> Any:
        from vllm.distributed.weight_transfer.clients import (  # pyright: ignore[reportMissingImports]
            HTTPVLLMWeightSyncClient,
        )
        from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )
        from vllm.utils.network_utils import get_ip, get_open_port  # pyright: ignore[reportMissingImports]

        workers = 0
        if world.is_main:
            workers = self._ask("GET", "/get_world_size")["world_size"]
        where = world.from_main([get_ip(), get_open_port(), workers])
        init = NCCLTrainerInitInfo(
            master_address=where[0], master_port=where[1], world_size=1 + where[2], rank=world.rank
        )
        client = HTTPVLLMWeightSyncClient(self.url, timeout=max(HELLO, self.timeout))
        try:
            return NCCLTrainerWeightTransferEngine.trainer_init(init, client=client, source=source_of(policy))
        except (RuntimeError, OSError) as error:  # a refusal over HTTP is an OSError too
            raise ValueError(
                f"--vllm_sync nccl: {self.url} cannot be sent weights ({error}); {START_FOR_NCCL}, or use --vllm_sync files"
            ) from error


def source_of(policy: Policy) -> Any:
    """Wraps the policy for vLLM's transfer: the shapes to expect, then the weights, anew for each transfer."""
    from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
        ParamMeta,
        WeightSource,
    )

    class Source(WeightSource):
        def metadata(self) -> list[Any]:
            return [
                ParamMeta(name, tensor.dtype, tuple(tensor.shape))
                for name, tensor in stream(policy, shapes_only=True)
            ]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return stream(policy)

    return Source()
