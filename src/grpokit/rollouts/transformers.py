"""Sampling with the model that is being trained, through Hugging Face's `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from grpokit.model import Policy
from grpokit.noise import keyed_uniform
from grpokit.parallel import whole_weights
from grpokit.rollouts import SamplingStopped
from grpokit.types import Prompt, Rollout, RolloutGroup


class KeyedSampling(LogitsProcessor):
    """Picks each token by its own keyed noise, and records the log-prob it had under the whole distribution.

    It gets raw logits and leaves a single candidate, which greedy search then takes. It bans end-of-sequence
    itself: the built-in processor for that would renormalise what is recorded here.
    """

    def __init__(
        self,
        keys: tuple[Tensor, Tensor],
        seed: int,
        temperature: float,
        greedy: bool,
        eos: Tensor,
        min_length: int,
    ) -> None:
        self.prompts, self.generations = keys  # [B] each
        self.seed, self.temperature, self.greedy = seed, temperature, greedy
        self.eos, self.min_length = eos, min_length
        self.logps: list[Tensor] = []  # [B] for each position
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """scores [B, V], raw → [B, V] with 0 for the picked token and −inf elsewhere."""
        position = len(self.logps)
        logps = (scores / self.temperature).log_softmax(-1)
        probs = logps.double().exp()
        self.entropies.append(torch.special.entr(probs).sum(-1).to(logps.dtype))
        if position < self.min_length:
            probs[:, self.eos] = 0
        if self.greedy:
            token = probs.argmax(-1, keepdim=True)
        else:
            noise = keyed_uniform(self.seed, self.prompts, self.generations, position)
            token = inverse_cdf(probs, noise)[:, None]
        self.logps.append(logps.gather(-1, token)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The token [B] whose slice of the cumulated `probs` [B, V] holds `uniform` [B] in [0, 1).

    `probs` is float64 and need not sum to 1. A token of probability 0 is never picked.
    """
    cdf = probs.cumsum(-1)
    total = cdf[:, -1]
    # Rounding may lift u·total to total itself, past every token; the largest number below it is in the last slice.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, point[:, None], right=True)[:, 0]


class TransformersSampler:
    """A `Sampler` that runs the policy itself, `rollout_batch_size` completions at a time."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        *,
        seed: int,
        max_completion_length: int,
        min_completion_length: int = 0,
        rollout_batch_size: int = 256,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy, self.tokenizer, self.seed = policy, tokenizer, seed
        self.max_length, self.min_length = max_completion_length, min_completion_length
        self.batch_size, self.stop = rollout_batch_size, stop
        self.eos_ids = eos_token_ids(policy.model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad is None else pad

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`."""
        jobs = [(prompt, g) for prompt in prompts for g in range(num_generations)]
        rollouts: list[Rollout] = []
        with whole_weights(self.policy):
            for start in range(0, len(jobs), self.batch_size):
                if self.stop():
                    raise SamplingStopped
                rollouts += self._generate(jobs[start : start + self.batch_size], greedy)
        size = num_generations
        return [RolloutGroup(p, tuple(rollouts[i * size : (i + 1) * size])) for i, p in enumerate(prompts)]

    def sync(self) -> None:
        """Nothing to do: it samples from the policy's own weights."""

    @torch.inference_mode()
    def _generate(self, jobs: Sequence[tuple[Prompt, int]], greedy: bool) -> list[Rollout]:
        policy, device = self.policy, self.policy.device
        input_ids, mask = left_pad([prompt.ids for prompt, _ in jobs], self.pad_id)
        keys = (
            torch.tensor([prompt.position for prompt, _ in jobs], device=device),
            torch.tensor([g for _, g in jobs], device=device),
        )
        eos = torch.tensor(self.eos_ids, device=device)
        picker = KeyedSampling(keys, self.seed, policy.temperature, greedy, eos, self.min_length)
        # Everything is said here. What the model directory says about sampling (top_k, repetition_penalty, ...) must
        # not act, and transformers merges it even into a config that is passed: so it's put aside meanwhile.
        ours = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_length,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        model = policy.model
        shipped, model.generation_config = model.generation_config, ours
        was_training = model.training
        model.eval()
        try:
            with policy.computing():
                output = model.generate(
                    input_ids=input_ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=ours,
                    logits_processor=LogitsProcessorList([picker]),
                    synced_gpus=False,  # the weights are here: no rank waits for another's completions
                )
        finally:
            model.generation_config = shipped
            model.train(was_training)
        completions = output[:, input_ids.shape[1] :].cpu()  # [B, T]
        logps, entropies = torch.stack(picker.logps, 1).cpu(), torch.stack(picker.entropies, 1).cpu()
        return [self._rollout(completions[i], logps[i], entropies[i]) for i in range(len(jobs))]

    def _rollout(self, ids: Tensor, logps: Tensor, entropies: Tensor) -> Rollout:
        ends = torch.nonzero(torch.isin(ids, torch.tensor(self.eos_ids))).flatten()
        length = int(ends[0]) + 1 if len(ends) else len(ids)
        return Rollout(
            completion_ids=ids[:length].clone(),
            logps=logps[:length].clone(),
            entropies=entropies[:length].clone(),
            text=self.tokenizer.decode(ids[:length], skip_special_tokens=True),
            finish_reason="stop" if len(ends) else "length",
            policy_version=self.policy.version,
            trainable=torch.ones(length, dtype=torch.bool),
        )


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token lists → input_ids [B, L] padded on the left, and their attention mask [B, L]."""
    width = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for b, ids in enumerate(sequences):
        input_ids[b, width - len(ids) :] = torch.tensor(ids)
        mask[b, width - len(ids) :] = 1
    return input_ids, mask


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """All tokens that end a completion: the model directory's (chat models name several) and the tokenizer's.

    Raises ValueError where there is none.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = list(named) if isinstance(named, list | tuple) else [named]
    ids.append(tokenizer.eos_token_id)
    unique = list(dict.fromkeys(i for i in ids if i is not None))
    if not unique:
        raise ValueError("--model: neither its tokenizer nor its generation_config.json names an eos token")
    return unique
