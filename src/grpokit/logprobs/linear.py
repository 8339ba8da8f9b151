"""Log-probs of tokens from hidden states, and a policy loss with its gradient. Logits exist one chunk at a time.

The gradient of a loss needs the logits, so it is computed while they exist. The loss is evaluated chunk by chunk, as a
function of log-probs and entropies [n]. Autograd gives its slopes ∂L/∂logp, and the chunk's logits turn into their own
gradient in place. That is three matmuls of N·V·H, the fewest that an exact gradient needs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import Loss, Stats, UnscoredTokens, policy_loss
from ..losses.surrogate import COUPLINGS
from ..types import LossOutput, Metrics, join_metrics
from .autograd import Connect, Score
from .chunks import Rows
from .head import Head
from .head_pass import HeadPass, LossFn
from .projection import operand_dtype


@dataclass(frozen=True, eq=False)
class LinearLoss:
    """The result of `linear_policy_loss`. `loss` is connected to the hidden states and the head."""

    loss: Tensor  # scalar: this slice's additive share of the update's loss
    metrics: Metrics  # additive metrics of all chunks
    logps: Tensor  # [N], without gradient
    entropies: Tensor | None  # [N], without gradient; None unless they were asked for


def family_loss(loss: Loss, tokens: UnscoredTokens, stats: Stats | None = None) -> LossFn:
    """Turns a loss of the family into a `loss_fn` for `linear_policy_loss`: `policy_loss` on a chunk of `tokens` [N].

    Example:
        >>> from grpokit.losses import make_loss
        >>> one, ids = torch.ones(3), torch.arange(3)
        >>> tokens = UnscoredTokens(advantages=one, weights=one / 3, sequence_ids=ids)
        >>> loss_fn = family_loss(make_loss("grpo"), tokens)
        >>> linear_policy_loss(torch.randn(3, 4), Head(torch.randn(5, 4)), ids, loss_fn).loss
        tensor(-1.)
    """

    def loss_fn(logps: Tensor, entropies: Tensor | None, rows: Rows) -> LossOutput:
        return policy_loss(loss, tokens.score(logps, entropies, rows), stats)

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
    """Computes the loss of `targets` under p = softmax(logits(hidden) / temperature), and its gradient, in one pass.

    Gradients flow to `hidden`, `head.weight` and `head.bias` where they require one; a frozen weight costs neither dW nor its
    matmul. Sums are in float32 or wider. The memory is dW, dH and the logits of `chunk_tokens` rows.

    Args:
        hidden: [N, H] hidden states. N = 0 gives a connected zero.
        head: the output projection.
        targets: [N] token ids.
        loss_fn: (logps [n], entropies [n] | None, rows) → LossOutput, the additive share of these rows. `rows` is a slice
            or positions [n]. It may depend on anything else that needs no gradient.
        temperature: of the distribution that was sampled from.
        with_entropy: whether `loss_fn` gets entropies, in nats.
        coupling: `Loss.coupling`. With "sequence", `loss_fn` gets whole sequences; one longer than a chunk costs a fourth
            matmul. Any rows serve "group" and "step", whose losses have statistics.
        sequence_ids: [N] sequence of each token; needed for "sequence".
        chunk_tokens: rows per chunk. Default: 64 MiB of logits on a CPU, 1 GiB on a GPU, at least 256 rows.

    Returns:
        The loss with its gradient, metrics, log-probs and entropies.

    Raises:
        ValueError: shapes, targets or options do not fit.
        RuntimeError: a gradient of the gradient was asked for.
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
    assert loss is not None  # there is at least one unit, even if it is empty
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
    """Computes the log-probs of `targets` under p = softmax(logits(hidden) / temperature), and the entropies of p.

    One matmul; with autograd three more, because the logits are computed again. With the same `sequence_ids` and `chunk_tokens`,
    the numbers are bitwise those inside `linear_policy_loss`.

    Args:
        hidden: [N, H] hidden states.
        head: the output projection.
        targets: [N] token ids.
        temperature: of the distribution that was sampled from.
        with_entropy: whether to compute entropies, which costs more passes over the logits.
        sequence_ids: [N] sequence of each token, which decides the cuts.
        chunk_tokens: rows per chunk; the default is that of `linear_policy_loss`.

    Returns:
        Log-probs [N], and entropies [N] in nats or None.

    Raises:
        ValueError: shapes, targets or options do not fit.
        RuntimeError: a gradient of the gradient was asked for.

    Example:
        >>> logps, entropies = linear_logprob(torch.zeros(1, 4), Head(torch.ones(2, 4)), torch.tensor([0]), with_entropy=True)
        >>> logps, entropies
        (tensor([-0.6931]), tensor([0.6931]))
    """
    how = (targets, temperature, with_entropy, sequence_ids, chunk_tokens, operand_dtype(hidden, head))

    def head_pass(hidden: Tensor, weight: Tensor, bias: Tensor | None, *wanted: bool) -> HeadPass:
        return HeadPass(hidden, dataclasses.replace(head, weight=weight, bias=bias), *how, wanted)

    return Score.apply(head_pass, hidden, head.weight, head.bias)
