"""The policy: a causal language model that turns a micro-batch into its share of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..batch.collate import unscored_tokens
from ..logprobs import family_loss, linear_logprob, linear_policy_loss
from ..losses import Loss, Stats
from ..types import LossOutput, Metric, MicroBatch, TokenScores
from .architecture import head, pass_through
from .lora import Lora
from .router import Balance, RouterLoss, expert_use

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Float64Throughout(TorchFunctionMode):
    """Replaces float32 by float64: everything that a model upcasts "to float32" (norms, rotary angles, softmax) is float64.

    A mode works for every architecture without a second copy of its modules.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Policy(nn.Module):
    """The causal language model being trained. It returns log-probs, or a micro-batch's share of the loss.

    Args:
        model: a Hugging Face causal model.
        temperature: divides the logits, in sampling and in every log-prob.
        dtype: the compute dtype.
        stored_dtype: the dtype of most weights in the directory that it was loaded from.
        other_dtypes: the dtype of each tensor that was loaded in another one, by name.
    """

    def __init__(
        self,
        model: Any,
        temperature: float,
        dtype: torch.dtype,
        stored_dtype: torch.dtype,
        other_dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.compute_dtype = dtype
        self.stored_dtype = stored_dtype
        self.other_dtypes = other_dtypes or {}
        self.lora: Lora | None = None  # the adapter that is trained while the weights are frozen
        self.version = 0  # optimizer steps taken so far
        self.recomputed: tuple[
            nn.Module, ...
        ] = ()  # with --gradient_checkpointing: the modules that look at their mode
        # Found at load: whether samples may be packed, and why completions may not share a prompt (None: they may).
        self.packs = False
        self.shares_not: str | None = "not probed yet"
        # Found by the gate at a run's start: why rows can't be sampled together by the loop, or by generate (None: they can).
        self.loop_not: str | None = None
        self.generate_not: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.model.device

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Sets the compute dtype, around every forward: training, scoring and sampling."""
        if self.compute_dtype == torch.float64:
            with Float64Throughout():
                yield
        elif self.compute_dtype == torch.float32:
            yield
        else:
            with torch.autocast(self.device.type, self.compute_dtype):
                yield

    @contextlib.contextmanager
    def _recomputing(self, on: bool) -> Iterator[None]:
        """Lets layers compute their activations again in the backward, with --gradient_checkpointing.

        They do so only where they are in train mode. Everything inside them stays in eval mode.
        """
        if not (on and self.recomputed):
            yield
            return
        config = self.model.config.get_text_config()
        # Some layers read the rate of their dropout off the config, whose values are saved.
        rates = {name: rate for name, rate in vars(config).items() if "dropout" in name and rate}
        for module in self.recomputed:
            module.training = True
        for name in rates:
            setattr(config, name, 0.0)
        try:
            yield
        finally:
            for module in self.recomputed:
                module.training = False
            for name, rate in rates.items():
                setattr(config, name, rate)

    def forward(
        self,
        micro: MicroBatch,
        loss: Loss | None = None,
        stats: Stats | None = None,
        with_entropy: bool = False,
        router: RouterLoss | None = None,
        balance: Balance | None = None,
    ) -> tuple[TokenScores, LossOutput | None]:
        """Scores a micro-batch, and computes its share of the loss if one is given.

        Hidden states that predict no trainable token never reach the head.

        Args:
            micro: the micro-batch.
            loss: the loss; None: only score.
            stats: statistics of the whole update, where the loss needs them.
            with_entropy: whether to return entropies even if the loss does not need them.
            router: the router loss whose first pass this is: experts are counted; None: they aren't.
            balance: what that pass has fixed: the router loss is added to the loss; None: it isn't.

        Returns:
            Log-probs and entropies of the N tokens, and the loss's output (None without a loss).
        """
        with_entropy = with_entropy or (loss is not None and loss.needs_entropies)
        with self.computing(), self._recomputing(loss is not None):
            # index_select's gradient adds up in a fixed order where one state predicts several tokens
            passed = pass_through(self.model, micro, with_router=bool(router or balance))
            hidden = passed.hidden.index_select(0, micro.at)
            inputs = hidden, head(self.model), micro.targets  # [N, H], the head, [N]
            how: dict[str, Any] = {
                "temperature": self.temperature,
                "with_entropy": with_entropy,
                "sequence_ids": micro.sequence_ids,  # scoring and training cut the tokens in the same places
            }
            if loss is None:
                logps, entropies = linear_logprob(*inputs, **how)
                used = router and expert_use(passed.router_logits, micro.copies, router.top_k)
                return TokenScores(logps, entropies, used), None
            loss_fn = family_loss(loss, unscored_tokens(micro), stats)
            coupling = "token" if stats is not None else loss.coupling
            out = linear_policy_loss(*inputs, loss_fn, coupling=coupling, **how)
            output = LossOutput(out.loss, out.metrics)
            if balance is not None:
                output = add_router_loss(output, balance, balance.share(passed.router_logits, micro.copies))
        return TokenScores(out.logps, out.entropies), output


def add_router_loss(output: LossOutput, balance: Balance, share: Tensor) -> LossOutput:
    """Adds a slice's share of the router auxiliary loss to its share of the loss, and to its metrics."""
    added = balance.coefficient * share
    metrics = {"loss": output.metrics["loss"] + Metric.sum(added), "aux_loss": Metric.sum(share)}
    metrics |= {"loss/router": Metric.sum(added)}
    if "loss/policy" not in output.metrics:
        metrics["loss/policy"] = output.metrics["loss"]
    return LossOutput(output.loss + added, output.metrics | metrics)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the torch dtype. `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]
