"""The router auxiliary loss of a mixture of experts: it penalizes experts that are chosen more often than others.

    L_aux = E · Σ_e f_e · P_e        (Switch Transformer, arXiv 2101.03961, equations 4 to 6)

Both means are over the Q pairs of a layer and a token of the *update*: f_e is how many times expert e is chosen, divided by Q,
and P_e its mean probability. A product of two means isn't a sum over tokens. So a first pass without gradient fixes f and Q,
and the second adds E · Σ_e f_e · p_e / Q for each pair. A prompt counts once for each of its completions, also where they
share it. Padding never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import ExpertUse


@dataclass(frozen=True)
class RouterLoss:
    """The coefficient of the router auxiliary loss, and how many experts a token has. Example: `RouterLoss(0.001, top_k=2)`"""

    coefficient: float
    top_k: int


def expert_use(logits: Sequence[Tensor], copies: Tensor, top_k: int) -> ExpertUse:
    """Counts the experts that a forward chose, as transformers' own loss does: the top k of the softmax.

    Args:
        logits: [M, E] for each layer, the routers' logits.
        copies: [M] how many samples each token counts for.
        top_k: the experts that each token is sent to.

    Returns:
        The counts.
    """
    counts = copies.new_zeros(logits[0].shape[-1])
    for of_layer in logits:
        chosen = of_layer.float().softmax(-1).topk(top_k, dim=-1).indices  # [M, k]
        counts = counts.index_add(0, chosen.flatten(), copies.repeat_interleave(top_k))
    return ExpertUse(counts, len(logits) * copies.sum())


@dataclass(frozen=True, eq=False)
class Balance:
    """The numbers that the first pass fixes: f and Q of the whole update.

    Example:
        >>> balance = Balance(0.01, frequency=torch.tensor([1.5, 0.5]), pairs=torch.tensor(4.0))
        >>> float(balance.share([torch.zeros(4, 2)], copies=torch.ones(4)))  # both experts are equally likely
        2.0
    """

    coefficient: float
    frequency: Tensor  # [E] f_e: Σ_e f_e is the number of experts of a token
    pairs: Tensor  # scalar Q

    @staticmethod
    def of(router: RouterLoss, use: ExpertUse) -> Balance:
        """Fixes the update's frequencies."""
        return Balance(router.coefficient, use.chosen.double() / use.pairs, use.pairs.double())

    def share(self, logits: Sequence[Tensor], copies: Tensor) -> Tensor:
        """Computes a slice's additive share of L_aux, without the coefficient.

        Args:
            logits: [M, E] for each layer, the routers' logits.
            copies: [M] how many samples each token counts for.

        Returns:
            A scalar with gradient; shares are summed over slices and ranks.
        """
        total = logits[0].new_zeros(()).float()
        # Autocast would compute the matrix product in 16 bits.
        with torch.autocast(copies.device.type, enabled=False):
            for of_layer in logits:
                probabilities = of_layer.float().softmax(-1)
                total = total + copies.to(probabilities) @ (probabilities @ self.frequency.to(probabilities))
        return len(self.frequency) * total / self.pairs.to(total)
