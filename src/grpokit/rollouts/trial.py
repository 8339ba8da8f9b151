"""Tries each way of sampling a model: the recorded log-probs must be those of each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.text import first_line
from ..parallel import unsharded
from ..policy.architecture import head, run_backbone
from ..policy.policy import Policy
from ..types import Prompt
from .transformers import TransformersSampler

PIECE = 512  # tokens whose logits are held at once
NO_TOKEN = 1_000_000_007  # an end of sequence that is never sampled


@dataclass(frozen=True)
class TrialTokenizer:
    """Stands in for a tokenizer where no text matters."""

    eos_token_id: int = NO_TOKEN
    pad_token_id: int = 0

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Returns an empty text."""
        return ""


def trial_prompts(lengths: Sequence[int], vocabulary: int) -> list[Prompt]:
    """Makes prompts of these lengths, of tokens that differ."""
    return [
        Prompt(i, tuple((7 * i + 5 * j + 1) % vocabulary for j in range(length)), "", {}, "a trial")
        for i, length in enumerate(lengths)
    ]


@torch.no_grad()
def try_sampling(
    policy: Policy, decode: Any, lengths: Sequence[int], new_tokens: int, batch_size: int = 256
) -> tuple[float, str | None]:
    """Samples prompts of different lengths together, and compares with each row alone.

    Args:
        policy: a model whose generation config names no end of sequence.
        decode: "loop" or "generate".
        lengths: tokens of the prompts.
        new_tokens: tokens to sample for each.
        batch_size: rows that are sampled together.

    Returns:
        The mean gap between the log-probs, and why this way can't be used at all, or None.
    """
    prompts = trial_prompts(lengths, policy.model.config.get_text_config().vocab_size)
    try:
        sampler = TransformersSampler(
            policy,
            TrialTokenizer(),
            seed=0,
            max_completion_length=new_tokens,
            rollout_batch_size=batch_size,
            decode=decode,
        )
        groups = sampler.sample(prompts, 1)
    except Exception as error:  # noqa: BLE001 - architectures and kernels raise what they like; the reason is said
        return float("inf"), first_line(error)
    gaps = []
    for group in groups:
        (rollout,) = group.rollouts
        alone = log_probs_alone(policy, [*group.prompt.ids, *rollout.completion_ids.tolist()])
        gaps.append((alone[len(group.prompt.ids) - 1 :] - rollout.logps.double()).abs())
    return float(torch.cat(gaps).mean()), None


@torch.no_grad()
def log_probs_alone(policy: Policy, ids: Sequence[int]) -> Tensor:
    """Returns the log-probs [L − 1] of a row's tokens from the model's own forward, without any other row.

    Those of a long row come from the model's hidden states in pieces, because its logits might not fit into memory.
    """
    row = torch.tensor([ids], device=policy.device)
    with unsharded(policy), policy.computing():
        if len(ids) <= PIECE:
            logits = policy.model(input_ids=row, use_cache=False).logits[0, :-1]
            return _chosen(logits, row[0, 1:], policy.temperature)
        hidden, found = run_backbone(policy.model, False, input_ids=row, use_cache=False).hidden[:-1], []
        for states, targets in zip(hidden.split(PIECE), row[0, 1:].split(PIECE), strict=True):
            found.append(_chosen(head(policy.model).logits(states), targets, policy.temperature))
    return torch.cat(found)


def _chosen(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Returns the log-probs [N] of `targets` under `logits` [N, V], in float64 on the CPU."""
    return (logits.double() / temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0].cpu()
