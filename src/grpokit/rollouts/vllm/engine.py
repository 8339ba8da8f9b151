"""Sampling with vLLM: a running server, or an engine in this process. Both implement one protocol.

Every engine works in the same order. It takes the policy's weights. Then both sides score a few tokens (`probe`). Then each
turn of a completion is requested as soon as it can be, with its own seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from ...common.waiting import Waiting, together
from ...parallel import ALONE, World
from ...policy.learn import Learning, score
from ...policy.load import eos_token_ids
from ...policy.policy import Policy
from ...types import Sample
from ..shaping import FULL, Shaping

PROBES, PROBE_TOKENS = 4, 16  # completions, and the most tokens of each, that both sides score after a sync


@dataclass(frozen=True)
class Request:
    """One completion to sample. Every parameter is set, so nothing in the model's generation_config.json decides about it."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    temperature: float
    seed: int
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    name: str  # for messages: the dataset's row and the number of the generation
    shaping: Shaping = FULL

    def parameters(self) -> dict[str, Any]:
        """Returns the sampling parameters under vLLM's names."""
        return {
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop_token_ids": list(self.stop_token_ids),
            "stop": list(self.stop),
            "include_stop_str_in_output": True,
            "top_k": self.shaping.top_k or -1,
            "top_p": self.shaping.top_p,
            "min_p": self.shaping.min_p,
            "repetition_penalty": self.shaping.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 0,  # only that of the sampled token
            "skip_special_tokens": False,
        }


@dataclass(frozen=True)
class Completion:
    """An engine's answer to a `Request`."""

    token_ids: list[int]  # with the end-of-sequence token
    logps: list[float]
    finish_reason: Literal["stop", "length"]


class Asking(Protocol):
    """Requests under way on an engine."""

    def ask(self, request: Request) -> Future[Completion]:
        """Sends a request. Its error is a ValueError that names it."""
        ...

    def work(self) -> bool:
        """Lets an engine of this process go on for a moment. Returns whether it did anything."""
        ...


class Engine(Protocol):
    """An engine that runs vLLM."""

    def take(self, policy: Policy, tokenizer: Any, world: World) -> None:
        """Loads the policy's current weights. A collective."""
        ...

    def asking(self) -> AbstractContextManager[Asking]:
        """Samples this rank's requests with the weights loaded last. Aborts unanswered requests on exit."""
        ...


def complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Samples requests that are known from the beginning. Returns the completions in order."""

    def one(asking: Asking, request: Request) -> Waiting[Completion]:
        answer = asking.ask(request)
        yield [answer]
        return answer.result()

    with engine.asking() as asking:
        return together([one(asking, r) for r in requests], work=lambda _: asking.work())


class WeightSync:
    """Keeps the engine's weights equal to the policy's. All samplers of a run share one, so each version is loaded once.

    Args:
        engine: the engine.
        policy: the policy.
        tokenizer: its tokenizer.
        max_gap: the largest accepted mean difference between the two sides' log-probs.
        longest: the most tokens of a completion.
        world: the ranks.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        tokenizer: Any,
        max_gap: float,
        longest: int = PROBE_TOKENS,
        world: World = ALONE,
    ) -> None:
        self.engine, self.policy, self.tokenizer, self.world = engine, policy, tokenizer, world
        self.max_gap = max_gap
        self.probe_tokens = min(PROBE_TOKENS, longest)  # the engine's context may end where a completion does
        self.eos_ids = tuple(eos_token_ids(policy.model, tokenizer))
        self.version: int | None = None  # `policy.version` of the weights that the engine holds

    def sync(self, probe_ids: tuple[int, ...]) -> None:
        """Loads the policy's current weights into the engine, unless it has them, and probes. A collective.

        Raises:
            ValueError: the two sides' log-probs differ. The message has the measured gap.
        """
        if self.version == self.policy.version:
            return
        self.engine.take(self.policy, self.tokenizer, self.world)
        self.probe(probe_ids)
        self.version = self.policy.version

    def probe(self, prompt_ids: tuple[int, ...]) -> None:
        """Compares the log-probs that vLLM and the trainer give to a few sampled tokens.

        Raises:
            ValueError: the log-probs differ by more than `max_gap` on average.
        """
        requests = [
            Request(
                prompt_ids,
                self.probe_tokens,
                0,
                self.policy.temperature,
                seed,
                self.eos_ids,
                (),
                f"probe {seed}",
            )
            for seed in range(self.world.rank * PROBES, (self.world.rank + 1) * PROBES)
        ]
        asked: list[Any] = []
        with self.world.together():  # each rank asks its own engine, and all ranks score all answers
            answers = complete(self.engine, requests)
            asked = [[answer.token_ids, answer.logps, answer.finish_reason] for answer in answers]
        found = [Completion(*answer) for part in self.world.gather_json(asked) for answer in part]
        rows = [
            Sample(
                index=index,
                group=0,
                prompt_ids=prompt_ids,
                completion_ids=torch.tensor(answer.token_ids),
                trainable=torch.ones(len(answer.token_ids), dtype=torch.bool),
                advantage=0.0,
                weight=0.0,
                length=len(answer.token_ids),
                sampler_logps=torch.tensor(answer.logps),
            )
            for index, answer in enumerate(found)
        ]
        ours = score(self.policy, rows, Learning(world=self.world))
        gaps = torch.cat([(ours[row.index].cpu() - row.sampler_logps).abs() for row in rows])
        mean, largest = float(gaps.mean()), float(gaps.max())
        if mean <= self.max_gap:
            return
        with self.world.together():
            raise ValueError(
                f"--vllm_max_gap {self.max_gap:g}: after loading the weights of optimizer step {self.policy.version}, the "
                f"log-probs of vLLM and of the trainer differ by {mean:.3g} on average over {len(gaps)} tokens, and by at "
                f"most {largest:.3g}; check that a server runs with --logprobs-mode processed_logprobs and the same --dtype; "
                "if so, vLLM did not load the weights (tied embeddings are a known trap)"
            )
