"""The reference of a KL penalty: a separate model, which may move, or the policy with its adapter switched off."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..types import MicroBatch, TokenScores
from .lora import switched_off
from .policy import Policy


class AdapterOff(nn.Module):
    """A policy with its LoRA adapter switched off: the model that the run began with. It needs no extra memory."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.policy.device

    def forward(self, micro: MicroBatch, **how: Any) -> tuple[TokenScores, None]:
        """See `Policy.forward`."""
        with switched_off(self.policy.model):
            return self.policy(micro, **how)[0], None


Reference = Policy | AdapterOff


@torch.no_grad()
def move_reference(reference: Policy, policy: Policy, alpha: float) -> None:
    """Moves the reference towards the policy: ref ← alpha·policy + (1 − alpha)·ref (TR-DPO, arXiv 2404.09656).

    Elementwise, so each rank moves its own shards.
    """
    theirs = dict(policy.model.named_parameters())
    for name, parameter in reference.model.named_parameters():
        parameter.mul_(1 - alpha).add_(theirs[name], alpha=alpha)
