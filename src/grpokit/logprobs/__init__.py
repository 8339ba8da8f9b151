"""Hidden states → log-probs of tokens, and a policy loss of them, without ever holding all logits [N, V].

Example:
    >>> import torch
    >>> hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)  # N = 3, H = 4, V = 5
    >>> logps, _ = linear_logprob(hidden, Head(weight), torch.tensor([0, 1, 4]), temperature=0.7)  # [N], one matmul

`linear_policy_loss` computes a loss and its gradient in one pass of three matmuls. `backward` then only hands the
gradient over.
"""

from .head import Head
from .linear import LinearLoss, family_loss, linear_logprob, linear_policy_loss

__all__ = ["Head", "LinearLoss", "family_loss", "linear_logprob", "linear_policy_loss"]
