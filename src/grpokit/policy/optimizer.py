"""AdamW and its learning rate: a pure function of the step, so that there is no scheduler state to resume."""

from __future__ import annotations

import math

import torch

from ..config.options import TrainConfig
from ..types import Metric
from .policy import Policy


def make_optimizer(policy: Policy, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters."""
    return torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step `step`, counted from 0: linear warm-up, then constant or decayed to 0 at max_steps."""
    warm, end = config.warmup_steps, config.max_steps
    if step < warm and config.lr_scheduler_type != "constant":
        return config.learning_rate * (step + 1) / (warm + 1)
    progress = (step - warm) / max(1, end - warm)
    factor = {
        "constant": 1.0,
        "constant_with_warmup": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_scheduler_type]
    return config.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> dict[str, Metric]:
    """Set it, and return it as a metric."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return {"learning_rate": Metric.share(rate, 1)}
