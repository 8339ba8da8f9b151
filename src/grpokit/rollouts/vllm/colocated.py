"""vLLM in the trainer's own process: each rank has an engine, on the device that it trains on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from ...common.hub import model_directory
from ...parallel import World
from ...policy.export import stream
from ...policy.lora import base_of
from ...policy.policy import Policy
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
        # Keeps the engine in this process: an engine in another process would need the weights sent to it.
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
            "enable_prefix_caching": True,  # completions share their prompt; a turn shares all turns before it
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
            for _ in weights:  # weights that vLLM did not read: gathering them is a collective
                pass
        self.llm.reset_prefix_cache()

    @contextmanager
    def asking(self) -> Iterator[ColocatedAsking]:
        """See `Engine.asking`."""
        asking = ColocatedAsking(self.llm.llm_engine)
        try:
            yield asking
        finally:
            asking.abort()


class ColocatedAsking:
    """Requests under way on an engine of this process. They advance together, a token at each `work`.

    Args:
        engine: vLLM's LLMEngine.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.under_way: dict[str, tuple[Request, Future[Completion]]] = {}
        self.number = 0

    def ask(self, request: Request) -> Future[Completion]:
        """See `Asking.ask`. Raises ValueError naming a request that the engine refuses."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        key, answer = str(self.number), Future()
        self.number += 1
        try:
            prompt = {"prompt_token_ids": list(request.prompt_ids)}
            self.engine.add_request(key, prompt, SamplingParams(**request.parameters()))
        except ValueError as error:
            raise ValueError(f"--vllm_mode colocate: {request.name} is refused: {error}") from error
        self.under_way[key] = request, answer
        return answer

    def work(self) -> bool:
        """See `Asking.work`."""
        if not self.engine.has_unfinished_requests():
            return False
        for found in self.engine.step():
            if found.finished:
                request, answer = self.under_way.pop(found.request_id)
                _answer(answer, found.outputs[0], request)
        return True

    def abort(self) -> None:
        """Aborts what is still under way."""
        if self.under_way:
            self.engine.abort_request(list(self.under_way))
        while self.engine.has_unfinished_requests():
            self.engine.step()


def _answer(answer: Future[Completion], output: Any, request: Request) -> None:
    if output.finish_reason not in ("stop", "length"):
        answer.set_exception(
            ValueError(f"--vllm_mode colocate: {request.name} was given up by vLLM: {output.finish_reason}")
        )
        return
    ids = list(output.token_ids)
    logps = [at[token].logprob for at, token in zip(output.logprobs, ids, strict=True)]
    answer.set_result(Completion(ids, logps, output.finish_reason))
