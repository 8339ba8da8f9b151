"""vLLM in the trainer's own process: each rank has an engine, on the device that it trains on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...common.hub import model_directory
from ...parallel import World
from ...policy.export import stream
from ...policy.lora import base_of
from ...policy.policy import Policy
from ..sampler import SamplingStopped
from .engine import Completion, Request


class Colocated:
    """The engine of `--vllm_mode colocate`. It takes weights from the policy's memory and writes no file.

    Args:
        model: the model's directory.
        policy: the policy.
        max_length: the most tokens of prompt and completion together.
        memory: the share of a GPU's memory that it may fill.
        trust_remote_code: whether the model's own code may run.
        world: the ranks.

    Raises:
        ValueError: vLLM is not installed in this environment, or cannot run the model.
    """

    def __init__(
        self,
        model: str,
        policy: Policy,
        *,
        max_length: int,
        memory: float,
        trust_remote_code: bool,
        world: World,
    ) -> None:
        # In this process: an engine in another one would need the weights sent to it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its log would break the progress bar
        try:
            from vllm import LLM  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"--vllm_mode colocate: vLLM cannot be imported here ({error}); install grpokit in vLLM's environment, or "
                "use a server (--vllm_mode server)"
            ) from error
        options: dict[str, Any] = {
            "dtype": str(policy.compute_dtype).removeprefix("torch."),
            "max_model_len": max_length,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",  # the model directory's own has no effect
            "trust_remote_code": trust_remote_code,
            "seed": 0,  # each request has its own seed
            "disable_log_stats": True,
        }
        if policy.device.type == "cuda":
            options["gpu_memory_utilization"] = memory
        else:
            options["enforce_eager"] = True
        if world.size > 1:  # torchrun has started the ranks, and each engine holds the whole model
            options["distributed_executor_backend"] = "external_launcher"
        path = model_directory(model, "--model")
        try:
            self.llm: Any = LLM(model=model_directory(base_of(path) or path, "--model"), **options)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"--vllm_mode colocate: vLLM cannot run {model}: {error}") from error

    def take(self, policy: Policy, tokenizer: Any, world: World) -> None:
        """See `Engine.take`."""
        with torch.no_grad():
            weights = stream(policy)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            for _ in weights:  # those that vLLM did not ask for: the ranks gather them together
                pass
        self.llm.reset_prefix_cache()

    def complete(self, requests: Sequence[Request], stop: Callable[[], bool]) -> list[Completion]:
        """See `Engine.complete`. Raises ValueError naming the request that the engine refuses or gives up."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        engine, found = self.llm.llm_engine, {}
        for index, request in enumerate(requests):
            params = SamplingParams(**request.parameters())
            try:
                engine.add_request(str(index), {"prompt_token_ids": list(request.prompt_ids)}, params)
            except ValueError as error:
                engine.abort_request([str(i) for i in range(index)])
                raise ValueError(f"--vllm_mode colocate: {request.name} is refused: {error}") from error
        while engine.has_unfinished_requests():
            if stop():
                engine.abort_request([str(i) for i in range(len(requests)) if i not in found])
                raise SamplingStopped("stopped while vLLM was sampling")
            found |= {
                int(answer.request_id): answer.outputs[0] for answer in engine.step() if answer.finished
            }
        return [self._completion(found[i], request) for i, request in enumerate(requests)]

    def _completion(self, output: Any, request: Request) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise ValueError(
                f"--vllm_mode colocate: {request.name} was given up by vLLM: {output.finish_reason}"
            )
        ids = list(output.token_ids)
        logps = [at[token].logprob for at, token in zip(output.logprobs, ids, strict=True)]
        return Completion(ids, logps, output.finish_reason)
