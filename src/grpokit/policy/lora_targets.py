"""Which modules of a model get a LoRA adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .lora import Lora, read_as_experts

READ_BY_KERNELS = ("out_proj", "dt_proj")  # Mamba's kernels read these weights, past any adapter


def choose_modules(model: Any, lora: Lora) -> tuple[Lora, list[str]]:
    """Settles what all-linear means for a model: every plain linear layer but the head, in MoE and Mamba models too.

    Experts that are stacked in one tensor, routers, and projections that a fused kernel of Mamba reads by itself can't have
    an adapter. Layers that share their name with a projection of the experts can't either (see `read_as_experts`).

    Returns:
        The adapter with its modules, and the names of those that get none.
    """
    if lora.target_modules != ("all-linear",):
        return lora, []
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    plain, skipped = [], set()
    for name, module in modules.items():
        parent, _, own_name = name.rpartition(".")
        kind = type(module).__name__
        is_router = "Router" in kind or own_name == "router"
        is_linear = kind == "Conv1D" or (isinstance(module, nn.Linear) and not is_router)
        fused = own_name in READ_BY_KERNELS and hasattr(modules[parent], "A_log")
        if is_linear and module is not head and not fused:
            plain.append(name)
        elif fused or (module is not head and not is_linear and _has_matrix(module)):
            skipped.add(own_name)
    if not skipped:
        return lora, []
    as_experts = read_as_experts(model, {name.rpartition(".")[2] for name in plain})
    skipped |= as_experts
    plain = [name for name in plain if name.rpartition(".")[2] not in as_experts]
    ends = {name.rpartition(".")[2] for name in plain}
    others = {name.rpartition(".")[2] for name in modules if name not in plain}
    in_full = [name for name in plain if name.rpartition(".")[2] in others]  # the last part isn't enough
    return replace(lora, chosen=(*sorted(ends - others), *in_full)), sorted(skipped)


def _has_matrix(module: nn.Module) -> bool:
    """Tells whether a module itself has a matrix, as routers and stacked experts have. Embeddings don't count."""
    return not isinstance(module, nn.Embedding | nn.Conv1d) and any(
        p.dim() >= 2 for p in module.parameters(recurse=False)
    )
