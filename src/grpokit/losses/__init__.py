"""The losses: pure functions of tensors, usable in any trainer. This room knows no model, no trainer and no ranks.

loss    = make_loss("dapo", epsilon_high=0.28)
weights = sequence_weights(loss, lengths, Counts.of(lengths))       # [S], once for the whole update
batch   = LossBatch.from_padded(mask, logps=logps, old_logps=old, advantages=advantages, weights=weights)
policy_loss(loss, batch).loss.backward()                            # or of any slices: their shares add up
"""

from .batch import LossBatch
from .correction import Correction
from .family import LOSSES, LossRow, find_surrogate, loss_options, make_loss, register
from .loss import Loss
from .policy_loss import policy_loss
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
    "UpdateStats",
    "find_surrogate",
    "loss_options",
    "make_loss",
    "policy_loss",
    "register",
    "sequence_weights",
    "surrogate",
]
