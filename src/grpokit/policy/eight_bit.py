"""AdamW with its moments in 8 bits (arXiv 2110.02861), by bitsandbytes' own kernels, on each rank's shard.

Moments are stored in blocks of 256 numbers, each with its largest absolute value. bitsandbytes refuses sharded tensors, so
each rank passes its own shard. Blocks then follow the shards, so another number of ranks rounds the moments differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..common.shards import local

BLOCK = 256  # numbers of a block
SMALLEST = 4096  # a parameter with fewer numbers keeps its moments in 32 bits


class AdamW8bit(torch.optim.Optimizer):
    """bitsandbytes' AdamW8bit for sharded parameters. Each rank has a state of its own, stored separately in checkpoints.

    Args:
        groups: parameter groups.
        lr: the learning rate.
        betas: the decay rates of the moments.
        eps: added to the denominator.

    Raises:
        ValueError: bitsandbytes is not installed.
    """

    rank_local = True  # the ranks' states can't be gathered into whole tensors

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        try:
            from bitsandbytes import functional
        except ImportError as error:
            raise ValueError(
                "--optim adamw_8bit: needs bitsandbytes, which is not installed; pip install grpokit[quantization]"
            ) from error
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._kernels: Any = functional
        self._maps = [functional.create_dynamic_map(signed=signed) for signed in (True, False)]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step, with the gradients that are there."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and local(parameter).numel():
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        value, gradient = local(parameter), local(parameter.grad).contiguous()
        state = self.state[parameter]
        if not state:
            state |= _first_state(value, in_8_bits=parameter.numel() >= SMALLEST)
        state["step"] += 1
        (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
        first, second, step = state["state1"], state["state2"], state["step"]
        if "absmax1" not in state:
            self._kernels.optimizer_update_32bit(
                *("adam", gradient, value, first, beta1, group["eps"], step, rate, second, beta2),
                weight_decay=decay,
            )
            return
        self._maps = [code.to(value.device) for code in self._maps]
        self._kernels.optimizer_update_8bit_blockwise(
            *("adam", gradient, value, first, second, beta1, beta2, 0.0, 0.0, group["eps"], step, rate),
            *(*self._maps, state["absmax1"], state["absmax2"]),
            weight_decay=decay,
        )


def _first_state(value: Tensor, in_8_bits: bool) -> dict[str, Any]:
    """Returns moments of 0: in 8 bits with a scale for each block, or in 32 bits."""
    dtype = torch.uint8 if in_8_bits else torch.float32
    state: dict[str, Any] = {"step": 0}
    for moment in "12":
        state[f"state{moment}"] = torch.zeros_like(value, dtype=dtype)
        if in_8_bits:
            blocks = -(-value.numel() // BLOCK)
            state[f"absmax{moment}"] = torch.zeros(blocks, dtype=torch.float32, device=value.device)
    return state
