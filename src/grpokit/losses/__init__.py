"""The losses: pure functions of tensors, usable in any trainer. Imports torch and `grpokit.types` only.

loss    = make_loss("dapo", epsilon_high=0.28)
weights = sequence_weights(loss, lengths, Counts.of(lengths))       # [S], once for the whole update
batch   = LossBatch.from_padded(mask, logps=logps, old_logps=old, advantages=advantages, weights=weights)
policy_loss(loss, batch).loss.backward()                            # or of any slices: their shares add up
"""

from .batch import LossBatch
from .family import LOSSES, Loss, LossRow, loss_options, make_loss
from .policy_loss import policy_loss
from .reductions import REDUCTIONS, Counts, sequence_weights
from .surrogates import SURROGATES, Surrogate

__all__ = [
    "LOSSES",
    "REDUCTIONS",
    "SURROGATES",
    "Counts",
    "Loss",
    "LossBatch",
    "LossRow",
    "Surrogate",
    "loss_options",
    "make_loss",
    "policy_loss",
    "sequence_weights",
]
