"""Checks for authors of losses: does your own surrogate keep the promises that the built-in ones keep?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import Counts, Loss, LossBatch, Surrogate, UpdateStats, make_loss, policy_loss, sequence_weights

TOLERANCE = 1e-10  # relative, in float64: far above rounding, far below the effect of a wrong denominator


@dataclass(frozen=True)
class LossCheck:
    """The result of `check_loss`. `ok` tells whether one may train with the loss; `print` shows the findings in words.

    Example:
        >>> check_loss("clip").ok
        True
    """

    name: str
    cut_invariant: bool  # the loss and gradient are the same however the batch is cut
    finite: bool  # finite at log-ratios of ±100, in float32 and float64
    gradient: bool  # autograd's gradient is the derivative of the value; False where parts are detached
    zero_at_zero_advantage: bool  # ℓ and its gradient are 0 where A = 0
    findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Checks that the loss is cut-invariant and finite, and keeps every promise it makes."""
        return self.cut_invariant and self.finite and not any(f.startswith("wrong") for f in self.findings)

    def __str__(self) -> str:
        marks = [f"{'yes' if getattr(self, f) else 'NO':>4}  {f.replace('_', ' ')}" for f in _CHECKS]
        return "\n".join(
            [f"{self.name}: {'ok' if self.ok else 'not ok'}", *marks, *(f"  - {f}" for f in self.findings)]
        )


_CHECKS = ("cut_invariant", "finite", "gradient", "zero_at_zero_advantage")


def check_loss(
    surrogate: str | Callable[..., Tensor] | Surrogate, loss_type: str = "grpo", **options: Any
) -> LossCheck:
    """Runs the property tests on a surrogate.

    Args:
        surrogate: a function `f(log_ratio, advantages, logps, *, options)`, its name in SURROGATES, or its place:
            `"file.py:name"` or `"package.module:name"`.
        loss_type: the row whose surrogate it replaces.
        **options: options of `make_loss`.

    Raises:
        ValueError: `make_loss` refuses it, or it does not return one value per token.

    Example:
        >>> print(check_loss("reinforce"))
        reinforce: ok
         yes  cut invariant
         yes  finite
         yes  gradient
         yes  zero at zero advantage
    """
    loss = make_loss(loss_type, surrogate=surrogate, **options)
    batch = _batch(loss, torch.float64)
    _check_shape(loss, batch)
    findings: list[str] = []
    checks = {
        "cut_invariant": _cut_invariant(loss, batch, findings),
        "finite": all([_finite(loss, dtype, findings) for dtype in (torch.float32, torch.float64)]),
        "gradient": _gradient(loss, batch, findings),
        "zero_at_zero_advantage": _zero(loss, batch, findings),
    }
    return LossCheck(loss.surrogate.name, findings=tuple(findings), **checks)


def _batch(loss: Loss, dtype: torch.dtype, spread: float = 0.4) -> LossBatch:
    """Makes six ragged sequences in three groups, with every field that a loss may need."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 3, 5, 2, 4, 7])
    ids = torch.repeat_interleave(torch.arange(6), lengths)
    n, groups = len(ids), torch.arange(6) // 2
    logps = -torch.rand(n, generator=g, dtype=dtype) - 0.1
    noise = torch.randn(4, n, generator=g, dtype=dtype)
    advantages = torch.tensor([1.0, -0.7, 0.4, -1.3, 0.9, -0.2], dtype=dtype)
    weights = sequence_weights(loss, lengths, Counts.of(lengths, groups), groups)
    return LossBatch(
        logps=logps,
        old_logps=logps + spread * noise[0],
        ref_logps=logps + spread * noise[1],
        sampler_logps=(logps + spread * noise[2]).clamp(max=-1e-3),
        entropies=noise[3].abs(),
        advantages=advantages[ids],
        weights=weights[ids].to(dtype),
        sequence_ids=ids,
        group_ids=groups[ids],
        positions=torch.cat([torch.arange(int(k)) for k in lengths]),
        lengths=lengths[ids],
    )


def _run(loss: Loss, batch: LossBatch, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Computes loss and gradient of a batch cut into `parts`, with statistics where tokens are coupled."""
    logps = batch.logps.detach().clone().requires_grad_()
    batch = dataclasses.replace(batch, logps=logps)
    stats = None
    if loss.coupling != "token":
        stats = UpdateStats.join([UpdateStats.of(loss, batch.select(p)) for p in parts]).finish(loss)
    shares = [policy_loss(loss, batch.select(p), stats).loss for p in parts]
    total = torch.stack(shares).sum()
    if total.requires_grad:
        total.backward()
    return total.detach(), torch.zeros_like(logps) if logps.grad is None else logps.grad


def _check_shape(loss: Loss, batch: LossBatch) -> None:
    inputs = [getattr(batch, name, None) for name in loss.surrogate.inputs]
    if any(value is None for value in inputs):
        return  # it takes statistics, which only policy_loss can look up
    returned = loss.surrogate.fn(
        torch.zeros_like(batch.logps), batch.advantages, batch.logps, *inputs, **loss.options
    )
    if not isinstance(returned, Tensor) or returned.shape != batch.logps.shape:
        shape = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ValueError(
            f"surrogate {loss.surrogate.name} returned {shape} for {len(batch)} tokens; it must return one value per token, "
            f"[{len(batch)}], and leave sums and means to the reduction"
        )


def _cut_invariant(loss: Loss, batch: LossBatch, findings: list[str]) -> bool:
    whole = _run(loss, batch, [torch.arange(len(batch))])
    for parts in (2, 3, 8):
        part_of = torch.randint(0, parts, (len(batch),), generator=torch.Generator().manual_seed(parts))
        cut = _run(loss, batch, [torch.nonzero(part_of == p).flatten() for p in range(parts)])
        for got, want, what in zip(cut, whole, ("loss", "gradient"), strict=True):
            gap = float((got - want).abs().max() / want.abs().max().clamp(min=1e-300))
            if not gap <= TOLERANCE:
                findings.append(
                    f"wrong: cut into {parts} slices, its {what} changes by {gap:.2g} of its size: it averages or compares "
                    "tokens that a cut can separate; leave averages to the reduction"
                )
                return False
    return True


def _finite(loss: Loss, dtype: torch.dtype, findings: list[str]) -> bool:
    for far in (100.0, -100.0):
        batch = _batch(loss, dtype)
        batch = dataclasses.replace(batch, old_logps=batch.logps - far)
        value, gradient = _run(loss, batch, [torch.arange(len(batch))])
        if not (torch.isfinite(value) and torch.isfinite(gradient).all()):
            findings.append(
                f"wrong: at a log-ratio of {far:g} in {str(dtype)[6:]} its loss or gradient is not finite"
            )
            return False
    return True


def _gradient(loss: Loss, batch: LossBatch, findings: list[str]) -> bool:
    """Compares autograd's gradient with central differences of the value, one token at a time."""
    everything = [torch.arange(len(batch))]
    _, gradient = _run(loss, batch, everything)
    step = 1e-6
    numeric = torch.zeros_like(gradient)
    for i in range(len(batch)):
        moved = [batch.logps.clone(), batch.logps.clone()]
        moved[0][i] += step
        moved[1][i] -= step
        up, down = (_run(loss, dataclasses.replace(batch, logps=m), everything)[0] for m in moved)
        numeric[i] = (up - down) / (2 * step)
    if torch.allclose(gradient, numeric, rtol=1e-4, atol=1e-7):
        return True
    worst = int((gradient - numeric).abs().argmax())
    findings.append(
        f"its gradient is not the derivative of its value (token {worst}: {float(gradient[worst]):.4g} against "
        f"{float(numeric[worst]):.4g}): parts of it are detached. That is right where the paper says so (cispo, vespo), "
        "and a mistake otherwise"
    )
    return False


def _zero(loss: Loss, batch: LossBatch, findings: list[str]) -> bool:
    dead = dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages))
    value, gradient = _run(loss, dead, [torch.arange(len(batch))])
    zero = float(value) == 0 and not gradient.any()
    if loss.surrogate.zero_at_zero_advantage and not zero:
        findings.append(
            "wrong: it declares zero_at_zero_advantage but is not zero there: samples with a gradient would be dropped"
        )
    if zero and not loss.surrogate.zero_at_zero_advantage:
        findings.append(
            "it is zero where the advantage is zero: declare it with @surrogate(zero_at_zero_advantage=True), so that "
            "samples without an advantage need no forward"
        )
    return zero
