"""Random steps for the tests of the whole family, and the few lines that cut one up and put it together again."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from grpokit.losses import LOSSES, Counts, LossBatch, UpdateStats, make_loss, policy_loss, sequence_weights
from grpokit.types import join_metrics

FAMILY = list(LOSSES)
MISSION = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
seeds = st.integers(0, 2**31)
MAX_LENGTH = 16

# The catalogue's reference values of g at ratios ρ, to four decimals. Columns: clip .2/.28 with δ 2.5 for A > 0 and A < 0,
# sapo for A > 0 (τ 1) and A < 0 (τ 1.05), cispo with a cap of 5.
WEIGHTS = [
    (0.1, 0.1, 0, 0.0822, 0.0806, 0.1),
    (0.5, 0.5, 0, 0.4700, 0.4671, 0.5),
    (1, 1, 1, 1, 1, 1),
    (1.5, 0, 1.5, 1.4100, 1.4012, 1.5),
    (3, 0, 0, 1.2599, 1.1663, 3),
    (10, 0, 0, 0.0049, 0.0031, 5),
]


def build(name, reduction=None, **options):
    """`name` with max_completion_length where its reduction divides by it."""
    length = (
        {"max_completion_length": MAX_LENGTH}
        if (reduction or LOSSES[name].reduction) == "constant_length"
        else {}
    )
    return make_loss(name, reduction=reduction, **length, **options)


@dataclass
class Step:
    """A whole update, padded: B rows of T positions in groups of two, dealt to ranks."""

    mask: torch.Tensor  # [B, T]
    logps: torch.Tensor
    old: torch.Tensor | None
    ref: torch.Tensor
    sampler: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor  # [B] or [B, T]
    groups: torch.Tensor  # [B]
    ranks: torch.Tensor  # [B]
    num_ranks: int = 1


def make_step(seed, rows=6, width=6, spread=0.5, per_token=False, num_ranks=1, dtype=torch.float64):
    """Ragged rows with holes; an all-masked row, a row of one token and equal advantages now and then; NaN under the mask."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    mask = torch.rand(rows, width, generator=g) < 0.7
    mask &= torch.rand(rows, 1, generator=g) < 0.9
    if seed % 3 == 0:
        mask[0] = torch.arange(width) == 1
    logps = -noise(rows, width).abs() - 0.01
    tensors = {
        "logps": logps,
        "old": logps + spread * noise(rows, width),
        "ref": logps + spread * noise(rows, width),
    }
    tensors["sampler"] = (logps + spread * noise(rows, width)).clamp(max=-1e-3)  # a probability
    tensors["entropies"] = noise(rows, width).abs()
    trash = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    for tensor in tensors.values():
        tensor[~mask] = trash[torch.randint(0, 3, (int((~mask).sum()),), generator=g)]
    advantages = noise(rows, width) if per_token else noise(rows)
    advantages[torch.rand(rows, generator=g) < 0.2] = 0
    groups = torch.arange(rows) // 2
    if seed % 5 == 0 and not per_token:
        advantages[groups == 1] = 0  # a group with equal rewards
    ranks = torch.randint(0, num_ranks, (rows,), generator=g)
    return Step(mask=mask, advantages=advantages, groups=groups, ranks=ranks, num_ranks=num_ranks, **tensors)


def weights_of(loss, step):
    """w [B] as every rank would compute it from its own counts."""
    lengths = step.mask.sum(-1)
    own = [Counts.of(lengths[step.ranks == r], step.groups[step.ranks == r]) for r in range(step.num_ranks)]
    weights = torch.zeros(len(lengths), dtype=torch.float64)
    for r, counts in enumerate(Counts.across_ranks(own)):
        mine = step.ranks == r
        weights[mine] = sequence_weights(loss, lengths[mine], counts, step.groups[mine])
    return weights


def flat(loss, step, weights=None):
    """The whole update as one flat LossBatch."""
    return LossBatch.from_padded(
        step.mask,
        logps=step.logps,
        old_logps=step.old,
        ref_logps=step.ref,
        sampler_logps=step.sampler,
        entropies=step.entropies,
        advantages=step.advantages,
        weights=weights_of(loss, step) if weights is None else weights,
        group_ids=step.groups,
    )


def gather(loss, batch, parts, seed=0, step=0):
    """The statistics of the update, gathered slice by slice."""
    return functools.reduce(
        lambda a, b: a + b, [UpdateStats.of(loss, batch.select(p)) for p in parts]
    ).finish(loss, seed, step)


@dataclass
class Result:
    loss: torch.Tensor
    gradient: torch.Tensor
    entropy_gradient: torch.Tensor
    metrics: dict


def run(loss, batch, parts, stats="gathered"):
    """A flat batch cut into `parts`: statistics over all of them where tokens are coupled, then one policy_loss each."""
    logps = batch.logps.detach().clone().requires_grad_()
    entropies = batch.entropies.detach().clone().requires_grad_()
    batch = dataclasses.replace(batch, logps=logps, entropies=entropies)
    if stats == "gathered":
        stats = gather(loss, batch, parts) if loss.coupling != "token" else None
    total, metrics = torch.zeros((), dtype=torch.float64), {}
    for part in parts:
        out = policy_loss(loss, batch.select(part), stats=stats)
        out.loss.backward()
        total, metrics = total + out.loss.detach(), join_metrics(metrics, out.metrics)
    entropy_gradient = torch.zeros_like(entropies) if entropies.grad is None else entropies.grad
    return Result(
        total, logps.grad, entropy_gradient, {name: metric.value for name, metric in metrics.items()}
    )


def assert_same(a, b, tolerance=1e-12):
    """Two results agree: loss, gradients and every metric, NaN where both have nothing to measure."""
    for what in ("loss", "gradient", "entropy_gradient"):
        got, want = getattr(a, what), getattr(b, what)
        scale = max(1.0, float(want.abs().max()) if want.numel() else 1.0)
        assert torch.allclose(got, want, rtol=tolerance, atol=tolerance * scale), what
    assert a.metrics.keys() == b.metrics.keys()
    for name, want in b.metrics.items():
        got, want = torch.tensor(a.metrics[name]).double(), torch.tensor(want).double()
        scale = max(1.0, float(want.abs())) if torch.isfinite(want) else 1.0
        assert torch.allclose(got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True), (
            name,
            got,
            want,
        )
