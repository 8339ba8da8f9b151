"""How users shape the distribution that tokens are sampled from: truncation and penalty, in vLLM's order.

logits → bans (no end of sequence before the minimum length) → repetition penalty → temperature → min_p → top_k → top_p → token
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shaping:
    """What makes the sampled distribution differ from the full tempered one. The defaults change nothing.

    Example:
        >>> Shaping(top_k=20, top_p=0.95).changes
        True
    """

    # Nucleus sampling (arXiv 1904.09751): the likeliest tokens whose probabilities add up to this.
    top_p: float = 1.0
    top_k: int = 0  # keeps this many of the likeliest tokens, and those that tie with the last one; 0: all
    min_p: float = (
        0.0  # tokens of at least this share of the likeliest token's probability (arXiv 2407.01082)
    )
    # Divides positive logits of tokens that were read or written before, and multiplies negative ones (arXiv 1909.05858).
    repetition_penalty: float = 1.0

    @property
    def truncates(self) -> bool:
        """Whether tokens are left out."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    @property
    def penalizes(self) -> bool:
        """Whether there is a repetition penalty."""
        return self.repetition_penalty != 1

    @property
    def changes(self) -> bool:
        """Whether anything differs from the full distribution."""
        return self.truncates or self.penalizes


FULL = Shaping()


def truncate(probs: Tensor, shaping: Shaping) -> Tensor:
    """Sets the probabilities that `min_p`, `top_k` and `top_p` leave out to 0, one option after the other.

    Args:
        probs: [B, V] float64, not negative; they need not sum to 1.
        shaping: the three options.

    Returns:
        [B, V] the kept probabilities, not renormalised, and 0 elsewhere.

    Example:
        >>> truncate(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).double(), Shaping(top_k=3, top_p=0.6))
        tensor([[0.5000, 0.3000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    if shaping.min_p > 0:
        least = shaping.min_p * probs.amax(-1, keepdim=True)
        probs = probs.where(probs >= least, 0.0)
    if 0 < shaping.top_k < probs.shape[-1]:
        edge = probs.topk(shaping.top_k, dim=-1).values[:, -1:]
        probs = probs.where(probs >= edge, 0.0)
    if shaping.top_p < 1:
        ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.cumsum(-1) - ordered  # the mass of the tokens before each
        kept = likelier < shaping.top_p * ordered.sum(-1, keepdim=True)
        kept[:, 0] = True
        probs = probs.where(torch.zeros_like(kept).scatter(-1, tokens, kept), 0.0)
    return probs


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Applies the repetition penalty.

    Args:
        logits: [B, V].
        seen: [B, V] bool: the tokens that were read or written before.
        penalty: above 1 makes them less likely.

    Returns:
        [B, V].

    Example:
        >>> penalize(torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[True, True, False]]), 2.0)
        tensor([[ 1., -4.,  2.]])
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)
