"""Hidden states → log-probabilities of tokens under the tempered distribution, in float32 or wider."""

from .head import Head, linear_logprob

__all__ = ["Head", "linear_logprob"]
