"""A second implementation of the losses, written from the formulas alone: float64 loops, gradients by hand.

It shares no code and no structure with grpokit.losses: every loss is one function from the whole step to its loss
and ∂loss/∂logp, and knows nothing of slices, weights or flat lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Step:
    """A whole step: per rank, rows of (logps, old, advantages per row, mask, ref)."""

    logps: list  # [rank][row][t]
    old: list | None
    advantages: list  # [rank][row]
    mask: list
    ref: list | None = None


def clamp(x, low, high):
    return max(low, min(high, x))


def token_clip(logp, old, a, epsilon=0.2, epsilon_high=None, delta=None):
    """Value and derivative of −min(min(ρ, δ)A, clip(ρ)A)."""
    high = epsilon if epsilon_high is None else epsilon_high
    d = logp - old
    rho = math.exp(clamp(d, -20, 20))
    slope = rho if -20 <= d <= 20 else 0.0
    first = min(rho, delta) if delta is not None else rho
    second = clamp(rho, 1 - epsilon, 1 + high)
    if first * a <= second * a:
        # The first term is the smaller: it moves with rho unless delta holds it.
        moves = delta is None or rho <= delta
        return -first * a, (-a * slope if moves else 0.0)
    return -second * a, 0.0  # the second is strictly smaller only outside the range, where it is flat


def token_cispo(logp, old, a, epsilon_high=5.0, epsilon_low_cap=0.0):
    rho = math.exp(clamp(logp - old, -20, 20))
    weight = clamp(rho, epsilon_low_cap, epsilon_high)
    return -weight * a * logp, -weight * a


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def token_sapo(logp, old, a, tau_pos=1.0, tau_neg=1.05, sapo_gain="paper"):
    d = logp - old
    rho = math.exp(clamp(d, -20, 20))
    slope = rho if -20 <= d <= 20 else 0.0
    tau = tau_pos if a > 0 else tau_neg
    gain = 4 / tau if sapo_gain == "paper" else 1.0
    s = sigmoid(tau * (rho - 1))
    return -gain * s * a, -gain * s * (1 - s) * tau * a * slope


def token_k3(logp, ref):
    d = ref - logp
    inside = -20 <= d <= 20
    d = clamp(d, -20, 20)
    return math.exp(d) - d - 1, (1 - math.exp(d)) if inside else 0.0


TOKEN = {
    "grpo": token_clip,
    "bnpo": token_clip,
    "dr_grpo": token_clip,
    "dapo": lambda *x, **o: token_clip(*x, **{"epsilon_high": 0.28, **o}),
    "cispo": token_cispo,
    "sapo": token_sapo,
}


def step_loss(loss_type, step, beta=0.0, max_completion_length=None, **options):
    """(loss, gradients [rank][row][t]) of a whole step."""
    lengths = [[sum(map(bool, row)) for row in rank] for rank in step.mask]
    sequences = sum(length > 0 for rank in lengths for length in rank)
    all_tokens = sum(sum(rank) for rank in lengths)
    loss, grads = 0.0, []
    for r, rank in enumerate(step.logps):
        grads.append([])
        for i, row in enumerate(rank):
            g = [0.0] * len(row)
            grads[-1].append(g)
            for t, logp in enumerate(row):
                if not step.mask[r][i][t]:
                    continue
                old = logp if step.old is None else step.old[r][i][t]
                value, slope = TOKEN[loss_type](logp, old, step.advantages[r][i], **options)
                if beta:
                    k, dk = token_k3(logp, step.ref[r][i][t])
                    value, slope = value + beta * k, slope + beta * dk
                if loss_type in ("grpo", "sapo"):
                    divisor = sequences * lengths[r][i]
                elif loss_type == "bnpo":
                    divisor = len(step.logps) * sum(lengths[r])
                elif loss_type == "dr_grpo":
                    divisor = sequences * max_completion_length
                else:
                    divisor = all_tokens
                loss += value / divisor
                g[t] = slope / divisor
    return loss, grads
