"""Sampling with vLLM: a running server, or an engine in this process. Both implement one protocol.

Every engine works in the same order. It takes the policy's weights. Then both sides score a few tokens (`probe`). Then all
completions of the step are requested at once, each with its own seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from ...common.noise import keyed_hash
from ...parallel import ALONE, World
from ...policy.learn import Learning, score
from ...policy.load import eos_token_ids
from ...policy.policy import Policy
from ...types import Prompt, Rollout, RolloutGroup, Sample
from ..sampler import SamplingStopped
from ..written import written_text

PROBES, PROBE_TOKENS = 4, 16  # completions, and the most tokens of each, that both sides score after a sync


@dataclass(frozen=True)
class Request:
    """One completion to sample. Every sampling parameter is set, so the model's generation_config.json has no effect."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    temperature: float
    seed: int
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    name: str  # for messages: the dataset's row and the number of the generation

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
            "top_k": -1,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
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


class Engine(Protocol):
    """An engine that runs vLLM."""

    def take(self, policy: Policy, tokenizer: Any, world: World) -> None:
        """Loads the policy's current weights. A collective."""
        ...

    def complete(self, requests: Sequence[Request], stop: Callable[[], bool]) -> list[Completion]:
        """Samples this rank's requests, in order, with the weights loaded last.

        Raises:
            SamplingStopped: `stop()` returned True.
        """
        ...


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
        """Scores some sampled tokens on both sides.

        Raises:
            ValueError: they differ by more than `max_gap`.
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
            answers = self.engine.complete(requests, lambda: False)
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
                f"most {largest:.3g}; a server must run with --logprobs-mode processed_logprobs and the same "
                "--dtype, or else it has not taken the weights (tied embeddings are a known trap)"
            )


class VLLMSampler:
    """A `Sampler` whose engine is vLLM. Its tokens depend on (seed, prompt, generation, weights) only.

    Args:
        weights: the engine and its weights.
        seed: seeds the requests, together with prompt and generation.
        max_completion_length: the most tokens of a completion.
        min_completion_length: tokens before which a completion does not end.
        stop_strings: strings that end a completion.
        stop: checked while sampling. Once it is True, `sample` raises SamplingStopped.
    """

    def __init__(
        self,
        weights: WeightSync,
        *,
        seed: int,
        max_completion_length: int,
        min_completion_length: int = 0,
        stop_strings: Sequence[str] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.weights, self.seed, self.stop = weights, seed, stop
        self.max_length, self.min_length = max_completion_length, min_completion_length
        self.stop_strings = tuple(stop_strings)
        self.probe_ids: tuple[int, ...] = ()

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`. Raises SamplingStopped once `stop()` is True."""
        pending = self.start(prompts, num_generations, greedy=greedy)
        pending.work()
        return pending.groups()

    def start(self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False) -> VLLMPending:
        """See `StartingSampler.start`."""
        if not self.probe_ids:  # the first prompt of any rank
            known = self.weights.world.gather_json(list(prompts[0].ids) if prompts else [])
            self.probe_ids = next((tuple(ids) for ids in known if ids), ())
        self.sync()
        jobs = [(prompt, g) for prompt in prompts for g in range(num_generations)]
        requests = [self._request(prompt, g, greedy) for prompt, g in jobs]
        return VLLMPending(self.weights, prompts, num_generations, requests, self.stop)

    def sync(self) -> None:
        """Loads the policy's current weights into the engine."""
        if self.probe_ids:
            self.weights.sync(self.probe_ids)

    def _request(self, prompt: Prompt, generation: int, greedy: bool) -> Request:
        return Request(
            prompt.ids,
            self.max_length,
            self.min_length,
            0.0 if greedy else self.weights.policy.temperature,
            int(keyed_hash(self.seed, prompt.position, generation)) & (2**31 - 1),
            self.weights.eos_ids,
            self.stop_strings,
            f"{prompt.source}, generation {generation + 1}",
        )


class VLLMPending:
    """Completions requested from vLLM; see `Pending`. They use the weights that it has when this is created.

    Args:
        weights: the engine and its weights.
        prompts: P prompts.
        num_generations: G completions per prompt.
        requests: the P·G requests, in order.
        stop: checked while sampling.
    """

    def __init__(
        self,
        weights: WeightSync,
        prompts: Sequence[Prompt],
        num_generations: int,
        requests: Sequence[Request],
        stop: Callable[[], bool],
    ) -> None:
        self.weights, self.prompts, self.size = weights, prompts, num_generations
        self.requests, self.stop = requests, stop
        self.version = weights.policy.version
        self.given_up = False
        self.answers: list[Completion] | None = None
        self.error: Exception | None = None

    def work(self) -> None:
        """See `Pending.work`. Only sends requests: it uses neither torch nor a tokenizer."""
        try:
            with contextlib.suppress(SamplingStopped):
                self.answers = (
                    self.weights.engine.complete(self.requests, lambda: self.given_up or self.stop())
                    if self.requests
                    else []
                )
        except Exception as error:  # noqa: BLE001 - raised by `groups`, on all ranks
            self.error = error

    def give_up(self) -> None:
        """See `Pending.give_up`."""
        self.given_up = True

    def groups(self) -> list[RolloutGroup]:
        """See `Pending.groups`."""
        with self.weights.world.together():
            if self.error is not None:
                raise self.error
        if self.answers is None:
            raise SamplingStopped("stopped while vLLM was sampling")
        pairs = zip(self.requests, self.answers, strict=True)
        rollouts, size = [self._rollout(*pair) for pair in pairs], self.size
        return [
            RolloutGroup(p, tuple(rollouts[i * size : (i + 1) * size])) for i, p in enumerate(self.prompts)
        ]

    def _rollout(self, request: Request, answer: Completion) -> Rollout:
        length = len(answer.token_ids)
        return Rollout(
            completion_ids=torch.tensor(answer.token_ids, dtype=torch.int64),
            logps=torch.tensor(answer.logps, dtype=torch.float32),
            entropies=torch.full((length,), torch.nan),  # vLLM does not report them; the metric is left out
            text=written_text(self.weights.tokenizer, answer.token_ids, request.stop_token_ids),
            finish_reason=answer.finish_reason,
            policy_version=self.version,
            trainable=torch.ones(length, dtype=torch.bool),
        )
