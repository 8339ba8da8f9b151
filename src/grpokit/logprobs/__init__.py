"""Hidden states → log-probabilities of tokens, and a policy loss of them, without keeping logits [N, V].

scores = linear_logprob(hidden, Head(weight), targets, temperature=0.7)                    # one matmul
out = linear_policy_loss(hidden, Head(weight), targets, family_loss(loss, batch))          # three, the gradient's too
out.loss.backward()                                                                        # only hands it over
"""

from .head import Head
from .linear import LinearLoss, family_loss, linear_logprob, linear_policy_loss

__all__ = ["Head", "LinearLoss", "family_loss", "linear_logprob", "linear_policy_loss"]
