"""Log-probs of tokens straight from hidden states, and a policy loss of them with its gradient: logits come in chunks.

The gradient of a loss needs the logits again, unless it is formed while they are there. So the loss is evaluated chunk
by chunk, as a function of log-probs and entropies [n]; ordinary autograd gives its slopes c = ∂L/∂logp, from which the
chunk's logits turn into their own gradient in place. Three matmuls of N·V·H, the fewest that an exact gradient needs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import Loss, LossBatch, Stats, policy_loss
from ..types import LossOutput, Metrics, join_metrics
from .autograd import Connect, Score
from .chunks import Rows
from .head import Head
from .head_pass import HeadPass, LossFn
from .projection import operand_dtype

COUPLINGS = ("token", "sequence", "group", "step")


@dataclass(frozen=True, eq=False)
class LinearLoss:
    """What `linear_policy_loss` returns: the loss, connected to hidden states and head, and what was met on the way."""

    loss: Tensor  # scalar: this slice's additive share
    metrics: Metrics  # of all chunks together
    logps: Tensor  # [N] without gradient
    entropies: Tensor | None  # [N] without gradient, where they were asked for


def family_loss(loss: Loss, batch: LossBatch, stats: Stats | None = None) -> LossFn:
    """A loss of the family as `linear_policy_loss` takes it: `policy_loss` on a chunk of `batch` [N].

    The batch's own `logps` and `entropies` are placeholders: each chunk's take their place.
    """

    def loss_fn(logps: Tensor, entropies: Tensor | None, rows: Rows) -> LossOutput:
        part = batch.select(rows)
        return policy_loss(loss, dataclasses.replace(part, logps=logps, entropies=entropies), stats)

    return loss_fn


def linear_policy_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    loss_fn: LossFn,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    coupling: str = "token",
    sequence_ids: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> LinearLoss:
    """The loss of `targets` [N] under p = softmax(logits(hidden [N, H]) / temperature), and its gradient, in one pass.

    `loss_fn(logps [n], entropies [n] | None, rows)` gives the additive share of some rows (a slice, or positions [n],
    of the N); it may depend on anything else that needs no gradient. With `coupling` "sequence" it is given whole
    sequences of `sequence_ids` [N], at the price of a fourth matmul for those that are longer than a chunk; a loss that
    couples more than that has statistics, so any rows serve it. The gradient is of hidden, head.weight and head.bias,
    as far as they require one (a frozen weight costs neither dW nor its matmul), in float32 or wider until it is handed
    over. Memory: dW, dH and the logits of `chunk_tokens` rows (default: 64 MiB on a CPU, 1 GiB on a GPU, but 256 rows at least).

    N = 0 gives a connected zero. Raises ValueError for shapes, targets or options that don't fit, and RuntimeError for
    a gradient of the gradient.
    """
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling {coupling!r}: there are {', '.join(COUPLINGS)}")
    if coupling == "sequence" and sequence_ids is None:
        raise ValueError(
            "coupling 'sequence': sequence_ids [N] are needed, to cut where no sequence is cut in two"
        )
    inputs = (hidden, head.weight, head.bias)
    wanted = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs)
    how = (targets, temperature, with_entropy, sequence_ids, chunk_tokens, operand_dtype(hidden, head))
    head_pass = HeadPass(hidden, head, *how, wanted)
    units = head_pass.units
    if coupling != "sequence":
        units = [[piece] for unit in units for piece in unit]
    loss, metrics = None, {}
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for unit in units:
            output = head_pass.learn(unit, loss_fn) if any(wanted) else head_pass.evaluate(unit, loss_fn)
            share = output.loss.detach()
            loss = share if loss is None else loss + share
            metrics = join_metrics(metrics, output.metrics)
    assert loss is not None  # there is a unit, if an empty one
    if any(wanted):
        loss = Connect.apply(loss, head_pass.projection.gradients, *inputs)
    return LinearLoss(loss, metrics, head_pass.logps, head_pass.entropies)


def linear_logprob(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    sequence_ids: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-prob [N] of `targets` [N] under p = softmax(logits(hidden [N, H]) / temperature), and p's entropy [N] in nats.

    The entropy is None unless `with_entropy`: it costs other passes over the logits. One matmul; with autograd two more,
    and one to have the logits again. Given the same `sequence_ids` and `chunk_tokens`, the numbers are bitwise those that
    `linear_policy_loss` meets. Raises ValueError for shapes, targets or options that don't fit, and RuntimeError for a
    gradient of the gradient.
    """
    how = (targets, temperature, with_entropy, sequence_ids, chunk_tokens, operand_dtype(hidden, head))

    def head_pass(hidden: Tensor, weight: Tensor, bias: Tensor | None, *wanted: bool) -> HeadPass:
        return HeadPass(hidden, dataclasses.replace(head, weight=weight, bias=bias), *how, wanted)

    return Score.apply(head_pass, hidden, head.weight, head.bias)
