"""Sampling with the model that is being trained, by the library's own decode loop or Hugging Face's `generate`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria

from ..parallel import unsharded
from ..policy.architecture import obstacle
from ..policy.load import eos_token_ids
from ..policy.policy import Policy
from ..types import Prompt, Rollout, RolloutGroup
from .attention import light
from .decode import Completing, decode
from .kept import TurnCache
from .pending import in_groups
from .picking import Ended, KeyedSampling, TokenPicker
from .sampler import Request, SamplingStopped, first_turns
from .shaping import FULL, Shaping
from .waves import Waves
from .written import written_text

log = logging.getLogger(__name__)

_said: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models whose use of generate was explained


class TransformersSampler:
    """A `Sampler` that runs the policy itself.

    A completion ends with the model's end-of-sequence token, or with the first of `stop_strings` after
    `min_completion_length` tokens.

    Args:
        policy: the policy.
        tokenizer: its tokenizer.
        seed: keys the noise.
        max_completion_length: the most tokens of a completion.
        min_completion_length: tokens before which a completion does not end.
        stop_strings: strings that end a completion.
        rollout_batch_size: completions sampled at once.
        decode: "loop": the decode loop of this package; "generate": Hugging Face's; "auto": the loop if it supports the
            model. The tokens are the same.
        share_prefill: whether the loop runs a prompt once for all its completions.
        shaping: truncation and penalty of the distribution that is sampled from.
        temperature: divides the logits (None: the policy's own, which training uses).
        turn_cache: bytes of keys and values that episodes may keep from turn to turn; 0: none.
        stop: checked between batches, and now and then in the loop. Once it is True, `sample` raises SamplingStopped.

    Raises:
        ValueError: `decode="loop"` does not support the model.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        *,
        seed: int,
        max_completion_length: int,
        min_completion_length: int = 0,
        stop_strings: Sequence[str] = (),
        shaping: Shaping = FULL,
        temperature: float | None = None,
        rollout_batch_size: int = 256,
        decode: Literal["auto", "loop", "generate"] = "auto",
        share_prefill: bool = True,
        turn_cache: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy, self.tokenizer, self.seed = policy, tokenizer, seed
        self.max_length, self.min_length = max_completion_length, min_completion_length
        self.shaping = shaping
        self.temperature = policy.temperature if temperature is None else temperature
        self.batch_size = rollout_batch_size
        self.decode, self.share_prefill, self.stop = decode, share_prefill, stop
        self.turn_cache = turn_cache
        self.strings = string_finder(tokenizer, stop_strings) if stop_strings else None
        self.eos_ids = eos_token_ids(policy.model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad is None else pad
        self._uses_loop(max_completion_length + 1)  # warns about the model now rather than at the first step

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`. Raises SamplingStopped once `stop()` is True."""
        with self._session():
            rollouts = self._complete(first_turns(prompts, num_generations, self.max_length), greedy)
        return in_groups(prompts, num_generations, rollouts)

    @contextmanager
    def turns(self, prompts: Sequence[Prompt], *, greedy: bool = False) -> Iterator[Waves]:
        """See `TurnEngine.turns`. The turns of a wave share a forward."""
        # Continuing behind a cache needs what the layout of shared prompts needs.
        continues = self.turn_cache and self.policy.shares_not is None
        kept = TurnCache(self.turn_cache) if continues else None
        with self._session():
            yield Waves(lambda requests: self._complete(requests, greedy, kept), self.policy.version)

    @contextmanager
    def _session(self) -> Iterator[None]:
        # Sharded weights are gathered once. Layers compiled for training run eagerly here, because every new token would
        # be a new shape to compile.
        with unsharded(self.policy), torch.compiler.set_stance("force_eager"):
            yield

    def _complete(
        self, requests: Sequence[Request], greedy: bool, kept: TurnCache | None = None
    ) -> list[Rollout]:
        """Samples one continuation of each request, in order. Raises SamplingStopped once `stop()` is True."""
        longest = max((len(r.ids) + r.room for r in requests), default=0)
        uses_loop = self._uses_loop(longest)
        run = partial(self._loop, kept=kept) if uses_loop else self._generate
        rollouts: list[Rollout] = []
        # A model whose rows change each other in generate is sampled row by row.
        size = 1 if not uses_loop and self.policy.generate_not else self.batch_size
        for start in range(0, len(requests), size):
            if self.stop():
                raise SamplingStopped(f"stopped after {start} of {len(requests)} completions")
            rollouts += self._sample_batch(requests[start : start + size], greedy, run)
        return rollouts

    def sync(self) -> None:
        """Does nothing: this sampler uses the policy's own weights."""

    def _uses_loop(self, longest: int) -> bool:
        """Checks whether the loop handles up to `longest` tokens. If not, logs why, once per model."""
        model = self.policy.model
        reason = None if self.decode == "generate" else obstacle(model, longest) or self.policy.loop_not
        if reason is None:
            return self.decode != "generate"
        if self.decode == "loop":
            raise ValueError(
                f'--decode loop: does not serve {type(model).__name__}: {reason}; use "auto" or "generate"'
            )
        if model not in _said:
            _said.add(model)
            log.warning("%s is sampled through generate, which is slower: %s", type(model).__name__, reason)
        return False

    def _sample_batch(
        self, requests: Sequence[Request], greedy: bool, run: Callable[[Sequence[Request], TokenPicker], None]
    ) -> list[Rollout]:
        policy, device = self.policy, self.policy.device
        picker = TokenPicker(
            torch.tensor([r.position for r in requests], device=device),
            torch.tensor([r.generation for r in requests], device=device),
            max(r.room for r in requests),
            seed=self.seed,
            temperature=self.temperature,
            greedy=greedy,
            eos=torch.tensor(self.eos_ids, device=device),
            min_length=self.min_length,
            dtype=torch.promote_types(policy.compute_dtype, torch.float32),
            strings=self.strings,
            starts=torch.tensor([r.start for r in requests], device=device),
            rooms=torch.tensor([r.room for r in requests], device=device),
            shaping=self.shaping,
            read=[r.ids for r in requests],
        )
        with torch.inference_mode(), policy.computing():
            run(requests, picker)
        return self._rollouts(picker)  # outside, so that its tensors may take part in a user's own gradient

    def _loop(self, requests: Sequence[Request], picker: TokenPicker, kept: TurnCache | None = None) -> None:
        most = len(picker.tokens)
        with light(self.policy.model):
            running = Completing(self.policy.model)
            keys = [(r.position, r.generation) for r in requests]
            block = None if kept is None else kept.take(keys, [len(r.ids) for r in requests])
            if block is None:
                logits = self._start(running, requests, most)
            else:
                counts = block.columns.sum(-1).tolist()
                new = [r.ids[count:] for r, count in zip(requests, counts, strict=True)]
                input_ids, mask = (t.to(self.policy.device) for t in left_pad(new, self.pad_id))
                logits = running.resume(block, input_ids, mask, most)
                del block  # the running cache has its tensors

            def leave(rows: Tensor) -> None:
                """Keeps the completions that have ended: only those may go on."""
                if kept is None:
                    return
                own = rows if picker.rows is None else picker.rows[rows]  # their numbers in the batch
                goes_on = picker.lengths[own] > 0
                rows, own = rows[goes_on], own[goes_on]
                if len(rows) == 0 or not kept.has_room(running.num_bytes(len(rows))):
                    return
                read = torch.tensor([len(requests[i].ids) for i in own.tolist()], device=rows.device)
                # The last token was sampled, and not read.
                kept.add([keys[i] for i in own.tolist()], running.block(rows, read + picker.lengths[own] - 1))

            decode(running, logits, picker, most, self.stop, leave)

    def _start(self, running: Completing, requests: Sequence[Request], most: int) -> Tensor:
        """Runs a forward over whole prompts, each once for all its completions. Returns logits [B, V]."""
        rows, prompts = [], []
        for request in requests:
            if not (self.share_prefill and prompts and prompts[-1] == request.ids):
                prompts.append(request.ids)
            rows.append(len(prompts) - 1)
        device = self.policy.device
        input_ids, mask = left_pad(prompts, self.pad_id)
        padded = None if bool(mask.all()) else mask.to(device)
        return running.start(input_ids.to(device), padded, torch.tensor(rows, device=device), most)

    def _generate(self, requests: Sequence[Request], picker: TokenPicker) -> None:
        model, device = self.policy.model, self.policy.device
        input_ids, mask = left_pad([request.ids for request in requests], self.pad_id)
        # Every setting is given here. The model directory's own (top_k, repetition_penalty, ...) has no effect.
        # transformers merges them even into a config that is passed, so they are set aside meanwhile.
        ours = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=len(picker.tokens),
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        shipped, model.generation_config = model.generation_config, ours
        try:
            model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=ours,
                logits_processor=LogitsProcessorList([KeyedSampling(picker)]),
                stopping_criteria=StoppingCriteriaList([Ended(picker)]),
                synced_gpus=False,  # each rank has all weights, so none waits for another's completions
            )
        finally:
            model.generation_config = shipped

    def _rollouts(self, picker: TokenPicker) -> list[Rollout]:
        recorded = [picker.tokens, picker.logps, picker.entropies]
        recorded += [] if picker.full_logps is None else [picker.full_logps]
        tokens, logps, entropies, *full = (
            x[: picker.position].T.contiguous().cpu() for x in recorded
        )  # [B, T]
        if not torch.isfinite(logps).all():
            raise ValueError(
                f"sampling after {self.policy.version} optimizer steps: the model's logits are NaN or infinite; the weights "
                "went wrong in training (a lower --learning_rate?) or were damaged before"
            )
        ends = picker.lengths.cpu()
        stopped = ends > 0
        lengths = torch.where(stopped, ends, picker.all_rooms.cpu().clamp(max=tokens.shape[1])).tolist()
        ids = [row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)]
        texts = [written_text(self.tokenizer, row, self.eos_ids) for row in ids]
        return [
            Rollout(
                completion_ids=tokens[i, :n].clone(),
                logps=logps[i, :n].clone(),
                entropies=entropies[i, :n].clone(),
                text=texts[i],
                finish_reason="stop" if stopped[i] else "length",
                policy_version=self.policy.version,
                trainable=torch.ones(n, dtype=torch.bool),
                full_logps=full[0][i, :n].clone() if full else None,
            )
            for i, n in enumerate(lengths)
        ]


def string_finder(tokenizer: Any, strings: Sequence[str]) -> StopStringCriteria:
    """Returns a criterion that finds strings ending within the last token.

    Raises:
        ValueError: the tokenizer's vocabulary cannot be searched.
    """
    try:
        return StopStringCriteria(tokenizer, list(strings))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--stop {' '.join(strings)}: the tokens of {type(tokenizer).__name__} in {tokenizer.name_or_path} cannot be "
            f"searched for strings ({error}); use --sampler vllm, or leave it out"
        ) from error


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads token lists on the left. Returns input_ids [B, L] and their attention mask [B, L]."""
    width = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for b, ids in enumerate(sequences):
        input_ids[b, width - len(ids) :] = torch.tensor(ids)
        mask[b, width - len(ids) :] = 1
    return input_ids, mask
