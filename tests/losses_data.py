"""Random steps for the loss tests, and the few lines that cut one up and put it together again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from grpokit.losses import LOSSES, Counts, LossBatch, make_loss, policy_loss, sequence_weights
from grpokit.types import join_metrics

MISSION = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
MAX_LENGTH = 16


def build(name, beta=0.0, **options):
    """`name` with max_completion_length where its reduction divides by it."""
    length = {"max_completion_length": MAX_LENGTH} if LOSSES[name].reduction == "constant_length" else {}
    return make_loss(name, beta=beta, **length, **options)


@dataclass
class Update:
    """A whole update, padded: B rows of T positions, on `ranks` (the rank of each row)."""

    mask: torch.Tensor  # [B, T]
    logps: torch.Tensor
    old: torch.Tensor | None
    ref: torch.Tensor
    advantages: torch.Tensor  # [B]
    ranks: torch.Tensor  # [B]
    num_ranks: int


def make_update(seed, rows=5, width=7, num_ranks=1, spread=0.5, on_policy=False, dtype=torch.float64):
    """Ragged rows with holes, an all-masked row now and then, some zero advantages, NaN under the mask."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=g) < 0.7
    mask &= torch.rand(rows, 1, generator=g) < 0.9
    noise = [torch.randn(rows, width, generator=g, dtype=dtype) for _ in range(3)]
    logps = -noise[0].abs() - 0.01
    old, ref = logps + spread * noise[1], logps + spread * noise[2]
    trash = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    for tensor in (logps, old, ref):
        tensor[~mask] = trash[torch.randint(0, 3, (int((~mask).sum()),), generator=g)]
    advantages = torch.randn(rows, generator=g, dtype=dtype)
    advantages[torch.rand(rows, generator=g) < 0.2] = 0
    ranks = torch.randint(0, num_ranks, (rows,), generator=g)
    return Update(mask, logps, None if on_policy else old, ref, advantages, ranks, num_ranks)


def weights_of(loss, update):
    """w [B] as every rank would compute it from its own counts."""
    lengths = update.mask.sum(-1)
    own = [Counts.of(lengths[update.ranks == r]) for r in range(update.num_ranks)]
    totals = Counts.across_ranks(own)
    weights = torch.zeros(len(lengths), dtype=torch.float64)
    for r, counts in enumerate(totals):
        mine = update.ranks == r
        weights[mine] = sequence_weights(loss, lengths[mine], counts)
    return weights


def flat_batch(loss, update):
    """The whole update as one flat LossBatch with a leaf for logps."""
    batch = LossBatch.from_padded(
        update.mask,
        logps=update.logps,
        old_logps=update.old,
        ref_logps=update.ref,
        advantages=update.advantages,
        weights=weights_of(loss, update),
    )
    return batch


def run_slices(loss, batch, parts):
    """Loss, gradient [N] and metrics of a flat batch cut into `parts` (index tensors), one policy_loss each."""
    import dataclasses

    logps = batch.logps.detach().clone().requires_grad_()
    batch = dataclasses.replace(batch, logps=logps)
    total, metrics = torch.zeros((), dtype=torch.float64), {}
    for part in parts:
        out = policy_loss(loss, batch.select(part))
        out.loss.backward()
        total, metrics = total + out.loss.detach(), join_metrics(metrics, out.metrics)
    return total, logps.grad, {name: metric.value for name, metric in metrics.items()}


def assert_same(a, b, tolerance=1e-12):
    """Two results of run_slices agree: loss, gradient and every metric, NaN where both have nothing to measure."""
    for got, want, what in [(a[0], b[0], "loss"), (a[1], b[1], "gradient")]:
        scale = max(1.0, float(want.abs().max()) if want.numel() else 1.0)
        assert torch.allclose(got, want, rtol=tolerance, atol=tolerance * scale), what
    assert a[2].keys() == b[2].keys()
    for name in a[2]:
        got, want = torch.tensor(a[2][name]).double(), torch.tensor(b[2][name]).double()
        assert torch.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True), (name, got, want)


seeds = st.integers(0, 2**31)
mission = st.sampled_from(MISSION)
betas = st.sampled_from([0.0, 0.04])
