"""Inputs of the one-pass head, and what it must give: from all logits at once, in float64 with plain autograd."""

from __future__ import annotations

import dataclasses

import torch

from grpokit.logprobs import Head, family_loss, linear_policy_loss
from grpokit.losses import LossBatch, UpdateStats, policy_loss
from helpers.family_data import flat, make_step

H, V = 5, 13
VARIANTS = [
    {},
    {"beta": 0.1, "entropy_coef": 0.03},
    {"correction_mode": "truncate", "beta": 0.04, "kl_gradient": "ratio"},
    {"correction_mode": "mask", "correction_level": "sequence_geometric", "opsm_threshold": 0.1},
    {"correction_mode": "truncate", "entropy_coef": 0.01, "top_entropy_quantile": 0.5},
]
HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "bias": {"bias": True, "temperature": 1.3},
    "softcap": {"softcap": 2.0, "scale": 0.5, "temperature": 0.9},
    "all": {"bias": True, "softcap": 1.5, "scale": 2.0, "temperature": 1.1},
}


@dataclasses.dataclass
class Case:
    """Inputs of the head, and a batch whose ratios are near 1."""

    hidden: torch.Tensor
    head: Head
    targets: torch.Tensor
    batch: LossBatch
    temperature: float = 1.0

    @property
    def inputs(self):
        return [x for x in (self.hidden, self.head.weight, self.head.bias) if x is not None]

    def clear(self):
        for x in self.inputs:
            x.grad = None

    def gradients(self):
        return [x.grad for x in self.inputs]


def make_case(loss, seed=1, bias=False, scale=1.0, softcap=None, temperature=1.0, dtype=torch.float64):
    batch = flat(loss, make_step(seed, rows=6, width=7))
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    n = len(batch)
    head = Head(leaf(V, H), leaf(V) if bias else None, scale, softcap)
    case = Case(leaf(n, H), head, torch.randint(V, (n,), generator=g), batch, temperature)
    near = full_scores(case)[0].detach()

    def beside():
        return (near + 0.3 * torch.randn(n, generator=g, dtype=torch.float64)).clamp(max=-1e-3)

    case.batch = dataclasses.replace(
        batch, old_logps=beside(), ref_logps=beside(), sampler_logps=beside(), logps=torch.zeros(n).double()
    )
    return case


def full_scores(case):
    """Log-probs and entropies by the definition, in float64."""
    logits = case.hidden.double() @ case.head.weight.double().T
    if case.head.bias is not None:
        logits = logits + case.head.bias.double()
    logits = logits * case.head.scale
    if case.head.softcap is not None:
        logits = case.head.softcap * torch.tanh(logits / case.head.softcap)
    logps = torch.log_softmax(logits / case.temperature, -1)
    return logps.gather(1, case.targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def oracle(case, loss, factor=1.0):
    """Loss, its gradients, log-probs, entropies and metrics, from all logits at once; and the statistics of the update."""
    case.clear()
    logps, entropies = full_scores(case)
    batch = dataclasses.replace(case.batch, logps=logps, entropies=entropies)
    stats = UpdateStats.of(loss, batch).finish(loss) if loss.needs_stats else None
    out = policy_loss(loss, batch, stats)
    (factor * out.loss).backward()
    return out, case.gradients(), logps.detach(), entropies.detach(), stats


def ours(case, loss, stats=None, factor=1.0, **options):
    case.clear()
    out = linear_policy_loss(
        case.hidden,
        case.head,
        case.targets,
        family_loss(loss, case.batch.unscored(), stats),
        temperature=case.temperature,
        with_entropy=options.pop("with_entropy", True),
        coupling=loss.coupling,
        sequence_ids=case.batch.sequence_ids,
        **options,
    )
    (factor * out.loss).backward()
    return out


def close(got, want, tolerance=1e-12):
    assert (got is None) == (want is None)
    if want is not None:
        torch.testing.assert_close(
            got.double(),
            want.double(),
            rtol=tolerance,
            atol=tolerance * max(1.0, float(want.detach().abs().max())),
        )


def compare(case, loss, tolerance=1e-12, **options):
    want, gradients, logps, entropies, stats = oracle(case, loss, options.get("factor", 1.0))
    found = ours(case, loss, stats, **options)
    close(found.loss, want.loss, tolerance)
    close(found.logps, logps, tolerance)
    close(found.entropies, entropies, tolerance)
    for got, expected in zip(case.gradients(), gradients, strict=True):
        close(got, expected, tolerance)
    assert found.metrics.keys() == want.metrics.keys()
    for name, metric in want.metrics.items():
        expected = torch.tensor(metric.value, dtype=torch.float64)
        got = torch.tensor(found.metrics[name].value, dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
