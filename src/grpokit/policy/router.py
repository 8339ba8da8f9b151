"""The router auxiliary loss of a mixture of experts: it penalizes experts that are chosen more often than others.

    L_aux = E · Σ_e f_e · P_e        (Switch Transformer, arXiv 2101.03961, equations 4 to 6)

Both means are over the Q pairs of a layer and a token of the *update*: f_e is how many times expert e is chosen, divided by Q,
and P_e its mean probability. A product of two means isn't a sum over tokens. So a first pass without gradient fixes f and Q,
and the second adds E · Σ_e f_e · p_e / Q for each pair. A prompt counts once for each of its completions, also where they
share it. Padding never counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..types import ExpertUse


@dataclass(frozen=True)
class RouterLoss:
    """The coefficient of the router auxiliary loss, and how many experts a token has. Example: `RouterLoss(0.001, top_k=2)`"""

    coefficient: float
    top_k: int


def expert_use(logits: Tensor, copies: Tensor, top_k: int) -> ExpertUse:
    """Counts the experts that a forward chose.

    Args:
        logits: [layers, M, E] the routers' logits.
        copies: [M] how many samples each token counts for.
        top_k: the experts that each token is sent to.

    Returns:
        The counts.
    """
    chosen = logits.float().softmax(-1).topk(top_k, dim=-1).indices  # [layers, M, k]
    times = copies[:, None].expand_as(chosen)
    counts = copies.new_zeros(logits.shape[-1]).index_add(0, chosen.flatten(), times.flatten())
    return ExpertUse(counts, len(logits) * copies.sum())


@dataclass(frozen=True, eq=False)
class Balance:
    """The numbers that the first pass fixes: f and Q of the whole update.

    Example:
        >>> balance = Balance(0.01, frequency=torch.tensor([1.5, 0.5]), pairs=torch.tensor(4.0))
        >>> float(balance.share(torch.zeros(1, 4, 2), copies=torch.ones(4)))  # both experts are equally likely
        2.0
    """

    coefficient: float
    frequency: Tensor  # [E] f_e: Σ_e f_e is the number of experts of a token
    pairs: Tensor  # scalar Q

    @staticmethod
    def of(router: RouterLoss, use: ExpertUse) -> Balance:
        """Fixes the update's frequencies."""
        return Balance(router.coefficient, use.chosen.double() / use.pairs, use.pairs.double())

    def share(self, logits: Tensor, copies: Tensor) -> Tensor:
        """Computes a slice's additive share of L_aux, without the coefficient.

        Args:
            logits: [layers, M, E] the routers' logits.
            copies: [M] how many samples each token counts for.

        Returns:
            A scalar with gradient; shares are summed over slices and ranks.
        """
        probabilities = logits.float().softmax(-1)
        frequency, copies = self.frequency.to(probabilities), copies.to(probabilities)
        # Not a matrix product, which autocast would compute in 16 bits.
        of_token = (frequency * probabilities).sum((0, -1))  # [M]
        return len(frequency) * (copies * of_token).sum() / self.pairs.to(probabilities)
