"""Samples through vLLM. Each turn is requested as soon as its prompt is known, and waits for no other episode's turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from ...common.noise import keyed_hash
from ...common.waiting import Waiting
from ...types import Prompt, Rollout, RolloutGroup
from ..pending import Progress, RolloutsPending, sample_together
from ..sampler import Request as TurnRequest
from ..sampler import Turns, first_turns
from ..shaping import FULL, Shaping
from ..written import written_text
from .engine import Asking, Completion, Request, WeightSync


class VLLMSampler:
    """A `StartingSampler`, and a `TurnEngine`. Its tokens depend on (seed, prompt, generation, weights) only.

    Args:
        weights: the engine and its weights.
        seed: seeds the requests, together with prompt, generation and the place where a turn starts.
        max_completion_length: the most tokens of a completion.
        min_completion_length: tokens before which a completion does not end.
        stop_strings: strings that end a completion.
        shaping: truncation and penalty of the distribution that is sampled from.
        temperature: divides the logits (None: the policy's own, which training uses).
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
        shaping: Shaping = FULL,
        temperature: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.weights, self.seed, self.stop = weights, seed, stop
        self.max_length, self.min_length = max_completion_length, min_completion_length
        self.stop_strings, self.shaping = tuple(stop_strings), shaping
        self.temperature = weights.policy.temperature if temperature is None else temperature
        self.probe_ids: tuple[int, ...] = ()
        # A copy, because a tokenizer serves one thread at a time, and turns may be sampled on another thread.
        self.tokenizer = copy.deepcopy(weights.tokenizer)

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`. Raises SamplingStopped once `stop()` is True."""
        return self.start(prompts, num_generations, greedy=greedy).now()

    def start(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> RolloutsPending:
        """See `StartingSampler.start`."""
        session = self.turns(prompts, greedy=greedy)
        requests = first_turns(prompts, num_generations, self.max_length)

        def sample(progress: Progress) -> list[Rollout]:
            with session as turns:
                pieces = [turns.ask(request) for request in requests]
                return sample_together(
                    pieces, lambda: progress.given_up or self.stop(), turns, progress.ended
                )

        return RolloutsPending(prompts, num_generations, sample, self.weights.world)

    def turns(self, prompts: Sequence[Prompt], *, greedy: bool = False) -> AbstractContextManager[Turns]:
        """See `TurnEngine.turns`. Each turn goes on by itself."""
        if not self.probe_ids:  # the first prompt of any rank
            known = self.weights.world.gather_json(list(prompts[0].ids) if prompts else [])
            # An environment's rows may have no prompts of their own.
            self.probe_ids = next((tuple(ids) for ids in known if ids), self.weights.eos_ids[:1])
        self.sync()
        return self._session(self.weights.policy.version, greedy)

    def sync(self) -> None:
        """Loads the policy's current weights into the engine."""
        if self.probe_ids:
            self.weights.sync(self.probe_ids)

    @contextmanager
    def _session(self, version: int, greedy: bool) -> Iterator[VLLMTurns]:
        with self.weights.engine.asking() as asking:
            yield VLLMTurns(self, asking, version, greedy)

    def request(self, turn: TurnRequest, greedy: bool) -> Request:
        """Returns the vLLM request for a turn. Its seed is a hash of the sampler's seed, the episode and the turn's place."""
        key = (self.seed, turn.position, turn.generation, *((turn.start,) if turn.start else ()))
        return Request(
            prompt_ids=turn.ids,
            max_tokens=turn.room,
            min_tokens=min(max(0, self.min_length - turn.start), turn.room),
            temperature=0.0 if greedy else self.temperature,
            seed=int(keyed_hash(*key)) & (2**31 - 1),
            stop_token_ids=self.weights.eos_ids,
            stop=self.stop_strings,
            name=f"{turn.source}, generation {turn.generation + 1}",
            shaping=self.shaping,
        )


class VLLMTurns:
    """A session (`Turns`) on vLLM. It uses no collective, so any thread may have it.

    Args:
        sampler: makes the requests.
        asking: sends them.
        version: `policy.version` of the weights that the engine has.
        greedy: takes the most probable token each time.
    """

    def __init__(self, sampler: VLLMSampler, asking: Asking, version: int, greedy: bool) -> None:
        self.sampler, self.asking, self.version, self.greedy = sampler, asking, version, greedy

    def ask(self, request: TurnRequest) -> Waiting[Rollout]:
        """See `Turns.ask`."""
        answer = self.asking.ask(self.sampler.request(request, self.greedy))
        yield [answer]
        return self._rollout(answer.result())

    def work(self, waiting: int) -> bool:
        """See `Turns.work`."""
        return self.asking.work()

    def _rollout(self, answer: Completion) -> Rollout:
        sampler, length = self.sampler, len(answer.token_ids)
        return Rollout(
            completion_ids=torch.tensor(answer.token_ids, dtype=torch.int64),
            logps=torch.tensor(answer.logps, dtype=torch.float32),
            entropies=torch.full((length,), torch.nan),  # vLLM does not report them; the metric is left out
            text=written_text(sampler.tokenizer, answer.token_ids, sampler.weights.eos_ids),
            finish_reason=answer.finish_reason,
            policy_version=self.version,
            trainable=torch.ones(length, dtype=torch.bool),
        )
