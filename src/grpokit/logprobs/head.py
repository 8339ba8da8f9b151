"""The language-model head in plain torch: one matmul, then the log-prob of each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """What a model does to its last hidden state: logits = softcap·tanh((h·Wᵀ + b)·scale / softcap)."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0  # Cohere's logit_scale, 1 / Granite's logits_scaling
    softcap: float | None = None  # Gemma's final_logit_softcapping

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, H] → [N, V], in float32 or the weights' wider type.

        bf16 logits would cost 1e-2 in a log-prob; autocast is off here, because it would make them bf16 again.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            logits = torch.nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def linear_logprob(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-prob [N] of `targets` [N] under p = softmax(logits(hidden [N, H]) / temperature), and p's entropy [N] in nats.

    The entropy is None unless `with_entropy`: it costs another pass over the logits.
    """
    logits = head.logits(hidden) / temperature  # [N, V]
    # amax/sub/exp/sum: torch.logsumexp does the same four times slower on a CPU.
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    picked = shifted.gather(-1, targets[:, None])[:, 0]
    exps = shifted.exp()
    total = exps.sum(-1)
    entropy = total.log() - (exps * shifted).sum(-1) / total if with_entropy else None  # H = log Z − E[x]
    return picked - total.log(), entropy
