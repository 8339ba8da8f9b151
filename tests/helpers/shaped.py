"""The distribution that truncation and penalties leave, computed token by token in float64."""

from __future__ import annotations

import torch


def reference(logits, temperature, shaping, seen=(), banned=()):
    """Log-probs [V] of the sampled distribution, token by token, in vLLM's order; −inf outside its support.

    Beside them, how far top_p's cut is from the nearest cumulated probability.
    """
    x = [float(v) for v in logits.double()]
    for token in banned:
        x[token] = -torch.inf
    for token in set(seen):
        penalty = shaping.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    p = (torch.tensor(x, dtype=torch.float64) / temperature).softmax(-1).tolist()
    most = max(p)
    p = [v if v >= shaping.min_p * most else 0.0 for v in p]
    if shaping.top_k:
        edge = sorted(p, reverse=True)[min(shaping.top_k, len(p)) - 1]
        p = [v if v >= edge else 0.0 for v in p]
    total, mass, kept, clear = sum(p), 0.0, [0.0] * len(p), 1.0
    for token in sorted(range(len(p)), key=lambda t: -p[t]):
        if shaping.top_p < 1 and mass >= shaping.top_p * total:
            break
        clear = min(clear, abs(mass / total + p[token] / total - shaping.top_p)) if shaping.top_p < 1 else 1.0
        kept[token], mass = p[token], mass + p[token]
    return (torch.tensor(kept, dtype=torch.float64) / sum(kept)).log(), clear
