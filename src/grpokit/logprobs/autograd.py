"""Two autograd functions: a loss whose gradient is already computed, and log-probs that recompute their logits in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .head_pass import HeadPass


class Connect(torch.autograd.Function):
    """A loss whose gradients are already computed. `backward` only scales them and hands them over."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None
    ) -> Tensor:
        """Takes the `gradients` of the loss with respect to each of `inputs`, for an upstream gradient of 1."""
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns each gradient times `d_loss`, in its input's dtype.

        Scales in place, unless the graph is kept for another backward.
        """
        _refuse_second_order("linear_policy_loss")
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_policy_loss: its gradients were handed over by a first backward; for a second one, give the first "
                "retain_graph=True"
            )
        # Scaling a copy would hold dW twice. torch's compiler makes the same check before it reuses a buffer.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
        gradients, dtypes = ctx.gradients, ctx.dtypes
        if not keep:
            ctx.gradients = None
        if not keep and d_loss.device.type == "cpu" and d_loss.item() == 1:
            scaled = gradients
        else:
            scaled = [g if g is None else g * d_loss if keep else g.mul_(d_loss) for g in gradients]
        return None, None, *(g if g is None else g.to(t) for g, t in zip(scaled, dtypes, strict=True))


class Score(torch.autograd.Function):
    """Log-probs and entropies. `backward` recomputes the logits chunk by chunk, so none are kept."""

    @staticmethod
    def forward(
        ctx: Any, make_pass: Callable[..., HeadPass], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Scores all rows. `make_pass(hidden, weight, bias, *wanted)` makes the `HeadPass`.

        Args:
            ctx: autograd's context.
            make_pass: makes the pass over the head.
            hidden: [N, H] hidden states.
            weight: [V, H] the head's weight.
            bias: [V] its bias, or None.

        Returns:
            Log-probs [N], and entropies [N] or None.
        """
        ctx.set_materialize_grads(False)
        ctx.make_pass = make_pass
        ctx.save_for_backward(hidden, weight, bias)
        head_pass = make_pass(hidden, weight, bias, False, False, False)
        with torch.autocast(hidden.device.type, enabled=False):
            for unit in head_pass.units:
                for piece in unit:
                    head_pass.score(piece)
        return head_pass.logps, head_pass.entropies

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_logps: Tensor | None, d_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Recomputes the logits (one matmul), then computes the gradients (two matmuls)."""
        _refuse_second_order("linear_logprob")
        inputs = ctx.saved_tensors
        head_pass = ctx.make_pass(*inputs, *ctx.needs_input_grad[1:])
        d_logps = torch.zeros_like(head_pass.logps) if d_logps is None else d_logps
        with torch.autocast(inputs[0].device.type, enabled=False):
            for unit in head_pass.units:
                for piece in unit:
                    part = None if d_entropies is None else d_entropies[piece]
                    head_pass.backward(piece, head_pass.score(piece), d_logps[piece], part)
        found = head_pass.projection.gradients
        return None, *(g if g is None else g.to(x.dtype) for g, x in zip(found, inputs, strict=True))


def _refuse_second_order(name: str) -> None:
    if torch.is_grad_enabled():  # inside backward, this means create_graph=True
        raise RuntimeError(
            f"{name}: a gradient of its gradient was asked for (create_graph=True), and it has none; "
            "Head.logits keeps the whole graph"
        )
