"""The losses: pure functions of tensors, for any trainer. This package knows no model, no trainer and no ranks.

Example:
    >>> import torch
    >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()               # [B, T] trainable tokens
    >>> logps, old = torch.full((2, 3), -1.0, requires_grad=True), torch.full((2, 3), -1.1)
    >>> loss = make_loss("dapo", epsilon_high=0.28)
    >>> lengths = mask.sum(-1)                                           # [B]
    >>> weights = sequence_weights(loss, lengths, Counts.of(lengths))    # [B], once for the whole update
    >>> advantages = torch.tensor([1.0, -1.0])
    >>> batch = LossBatch.from_padded(mask, logps=logps, old_logps=old, advantages=advantages, weights=weights)
    >>> policy_loss(loss, batch).loss.backward()                         # or slice by slice: the shares add up
"""

from .batch import LossBatch, UnscoredTokens
from .correction import Correction
from .family import LOSSES, LossRow, find_surrogate, loss_options, make_loss, register
from .loss import Loss
from .policy_loss import TokenPull, policy_loss, token_pull
from .ratio import RATIO_LEVELS
from .reductions import REDUCTIONS, Counts, sequence_weights
from .stats import Stats, UpdateStats
from .surrogate import SURROGATES, Surrogate, surrogate

StepStats = UpdateStats  # its name in 0.1; will be removed in 0.3

__all__ = [
    "LOSSES",
    "RATIO_LEVELS",
    "REDUCTIONS",
    "SURROGATES",
    "Correction",
    "Counts",
    "Loss",
    "LossBatch",
    "LossRow",
    "Stats",
    "StepStats",
    "Surrogate",
    "TokenPull",
    "UnscoredTokens",
    "UpdateStats",
    "find_surrogate",
    "loss_options",
    "make_loss",
    "policy_loss",
    "register",
    "sequence_weights",
    "surrogate",
    "token_pull",
]
