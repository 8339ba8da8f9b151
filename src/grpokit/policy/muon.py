"""Muon (arXiv 2502.16982): the momentum of each hidden matrix is orthogonalised; all other parameters are AdamW's.

With momentum m, B ← m·B + (1 − m)·g, then O = NewtonSchulz((1 − m)·g + m·B) and W ← (1 − lr·decay)·W − lr·0.2·√max(rows,
columns)·O. The factor gives O the root mean square of an AdamW step, so AdamW's learning rate carries over. The formula and
constants are those of torch.optim.Muon with `match_rms_adamw`. torch runs Newton–Schulz in bfloat16, on whole matrices
only. Here it runs in float32 or better. A sharded matrix is gathered for it, so every rank computes the same O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..common.shards import full
from ..parallel import like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic's, from Keller Jordan's Muon
STEPS = 5
EPSILON = 1e-7  # the smallest norm that is divided by


class Muon(torch.optim.Optimizer):
    """Muon on the parameters of `matrices`, and AdamW on those of `rest`, with one state and one list of groups.

    Args:
        matrices: parameter groups of 2-D tensors.
        rest: parameter groups of any others.
        lr: the learning rate of both.
        momentum: the decay rate of the matrices' momentum.
        adamw: further arguments of AdamW.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> optimizer = Muon([{"params": [layer.weight]}], [{"params": [layer.bias]}], lr=1e-3, momentum=0.95)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 1]
    """

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        rest: Sequence[dict[str, Any]],
        lr: float,
        momentum: float,
        **adamw: Any,
    ) -> None:
        # Both optimizers hold the same group dicts, not copies, so a new learning rate reaches both.
        self.adamw = torch.optim.AdamW(list(rest), lr=lr, **adamw) if rest else None
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0}
        super().__init__([*matrices, *rest], defaults)
        self.matrices = self.param_groups[: len(matrices)]
        if self.adamw is not None:
            self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step, with the gradients that are there. A collective where parameters are sharded."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.matrices:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        if self.adamw is not None:
            self.adamw.step()
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient, state = parameter.grad, self.state[parameter]
        momentum, rate = group["momentum"], group["lr"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        direction = orthogonalise(full(gradient.lerp(buffer, momentum)))
        parameter.mul_(1 - rate * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(parameter.shape))
        parameter.add_(like(parameter, direction.to(parameter.dtype)), alpha=-rate * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Moves the singular values of a matrix towards 1 by five steps of a quintic Newton–Schulz iteration.

    They end between about 0.7 and 1.2, except those far below the matrix's norm. Computes in float32, or in the matrix's
    dtype if that is wider.

    Example:
        >>> torch.linalg.svdvals(orthogonalise(torch.diag(torch.tensor([3.0, 1.0])))).round(decimals=1)
        tensor([1.1000, 0.8000])
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def hidden_matrices(model: Any) -> set[str]:
    """Returns the names of the parameters that Muon moves: all 2-D ones but embeddings and the head.

    Example:
        >>> model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
        >>> hidden_matrices(model)
        {'1.weight'}
    """
    apart = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if hasattr(model, "get_output_embeddings"):
        apart += filter(None, [model.get_input_embeddings(), model.get_output_embeddings()])
    excluded = {id(p) for module in apart for p in module.parameters()}
    return {name for name, p in model.named_parameters() if p.ndim == 2 and id(p) not in excluded}
