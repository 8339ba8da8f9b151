"""`Head`: how a model turns its last hidden state into logits; and the checks of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """How a model turns its last hidden state into logits: softcap·tanh((h·Wᵀ + b)·scale / softcap).

    Example:
        >>> Head(torch.eye(2), scale=0.5).logits(torch.tensor([[1.0, 2.0]]))
        tensor([[0.5000, 1.0000]])
    """

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0  # Cohere's logit_scale, or 1 / Granite's logits_scaling
    softcap: float | None = None  # Gemma's final_logit_softcapping

    def logits(self, hidden: Tensor) -> Tensor:
        """Computes all logits with autograd: [N, H] → [N, V], in float32 or the weights' wider dtype.

        bf16 logits would cost 1e-2 in a log-prob. Autocast is off here, because it would make them bf16 again.
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


@dataclass(frozen=True)
class Squash:
    """The map from raw logits to those of the tempered distribution: x = gain·raw, or x = gain·tanh(slope·raw)."""

    gain: float
    slope: float | None = None

    @classmethod
    def of(cls, head: Head, temperature: float) -> Squash:
        """Makes the map for a head and a temperature.

        Raises:
            ValueError: the temperature, scale or softcap is not above 0.
        """
        for name, value in (("temperature", temperature), ("scale", head.scale), ("softcap", head.softcap)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value}: must be above 0")
        if head.softcap is None:
            return cls(head.scale / temperature)
        return cls(head.softcap / temperature, head.scale / head.softcap)


def check_inputs(hidden: Tensor, head: Head, targets: Tensor) -> None:
    """Checks shapes and dtypes, and that every target is in the vocabulary.

    Raises:
        ValueError: something does not fit. The message names it.
    """
    if hidden.ndim != 2 or head.weight.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"hidden has shape {list(hidden.shape)} and head.weight {list(head.weight.shape)}; expected [N, H] and [V, H]"
        )
    vocabulary = head.weight.shape[0]
    if head.bias is not None and head.bias.shape != (vocabulary,):
        raise ValueError(f"head.bias has shape {list(head.bias.shape)}; expected [V] = [{vocabulary}]")
    if targets.shape != hidden.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"targets: {targets.dtype} of shape {list(targets.shape)}; expected integers, one for each row of hidden, "
            f"[{len(hidden)}]"
        )
    outside = (targets < 0) | (targets >= vocabulary)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"targets[{row}] is {int(targets[row])}: outside of the head's vocabulary, 0 to {vocabulary - 1}"
        )
