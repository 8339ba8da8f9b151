"""The Policy: a causal language model that turns a micro-batch into its share of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..batch.collate import loss_batch
from ..logprobs import family_loss, linear_logprob, linear_policy_loss
from ..losses import Loss, Stats
from ..types import LossOutput, MicroBatch, TokenScores
from .architecture import head, hidden_states
from .lora import Lora

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Float64Throughout(TorchFunctionMode):
    """Within it there is no float32: what a model upcasts "to float32" (norms, rotary angles, softmax) is float64.

    A mode rather than swapped modules: it serves every architecture, and there is no second copy of a norm.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Policy(nn.Module):
    """A causal language model as GRPO sees it: micro-batch in, log-probs or the loss's share out."""

    def __init__(self, model: Any, temperature: float, dtype: torch.dtype, stored_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.compute_dtype = dtype
        self.stored_dtype = stored_dtype  # of the directory it was loaded from
        self.lora: Lora | None = None  # what is trained beside frozen weights
        self.version = 0  # optimizer steps behind the weights
        # Found out at load: rows may stand one after the other in a forward; why completions may not share a prompt.
        self.packs = False
        self.shares_not: str | None = "nothing has tried it"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The compute type, around every forward: training, scoring and sampling alike."""
        if self.compute_dtype == torch.float64:
            with Float64Throughout():
                yield
        elif self.compute_dtype == torch.float32:
            yield
        else:
            with torch.autocast(self.device.type, self.compute_dtype):
                yield

    def forward(
        self,
        micro: MicroBatch,
        loss: Loss | None = None,
        stats: Stats | None = None,
        with_entropy: bool = False,
    ) -> tuple[TokenScores, LossOutput | None]:
        """Log-probs (and entropies, if asked for) of the micro-batch's tokens, and its share of the loss where one is given.

        Hidden states of other positions never reach the head.
        """
        with_entropy = with_entropy or (loss is not None and loss.needs_entropies)
        with self.computing():
            # index_select, whose gradient adds up in a fixed order where several tokens are predicted in one place
            hidden = hidden_states(self.model, micro).index_select(0, micro.at)
            inputs = hidden, head(self.model), micro.targets  # [N, H], the head, [N]
            how: dict[str, Any] = {
                "temperature": self.temperature,
                "with_entropy": with_entropy,
                "sequence_ids": micro.sequence_ids,  # cut in the same places, whether it's for scores or for a loss
            }
            if loss is None:
                return TokenScores(*linear_logprob(*inputs, **how)), None
            blank = torch.zeros_like(micro.advantages)  # the head puts a chunk's log-probs in its place
            batch = loss_batch(micro, TokenScores(blank, blank if with_entropy else None))
            coupling = "token" if stats is not None else loss.coupling
            out = linear_policy_loss(*inputs, family_loss(loss, batch, stats), coupling=coupling, **how)
        return TokenScores(out.logps, out.entropies), LossOutput(out.loss, out.metrics)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]
