"""FLOPs of a model from its shapes: what a forward and a backward cost, counted as they are run.

A multiplication and an addition are two FLOPs. Only matrix products count, as in PaLM's model FLOPs utilization
(arXiv:2204.02311, appendix B): attention as if each token saw all of its sequence, or all of its window; no padding, and
nothing that is computed a second time (gradient checkpointing).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..types import Layout, RolloutGroup, Sample
from .architecture import backbone
from .reference import AdapterOff, Reference

# Dense FLOP/s in bfloat16, from the makers' data sheets, by a part of the device's name; the first that fits counts.
PEAK_FLOPS: dict[str, float] = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A6000": 155e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI355X": 2500e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI250X": 191.5e12,  # one of its two dies, which is a device
}


@dataclass(frozen=True)
class ModelFlops:
    """The cost of a model's forward in FLOPs.

    Example:
        >>> ModelFlops(token=2e9, trained=2e9, head=1e8, trained_head=1e8, pairs=((1e5, None),)).forward(10, [10], 10)
        21010000000.0
    """

    token: float  # an input token in the matrices of the layers
    trained: float  # the part of them whose weights are trained
    head: float  # a predicted token in the head
    trained_head: float  # the same if the head is trained, else 0
    # FLOPs of a pair of a query and a key in all layers of one kind, and the window of that kind (None: the whole sequence).
    pairs: tuple[tuple[float, int | None], ...]

    def attention(self, queries: int, keys: int) -> float:
        """Returns the FLOPs of the attention of `queries` tokens that see `keys` tokens."""
        return sum(
            cost * queries * (keys if window is None else min(keys, window)) for cost, window in self.pairs
        )

    def decoding(self, prompt: int, length: int) -> float:
        """Returns the FLOPs of the attention of `length` tokens that are sampled one after the other after a prompt."""
        total = 0.0
        for cost, window in self.pairs:
            # The tokens that see fewer than a whole window.
            growing = length if window is None else max(0, min(length, window - prompt))
            total += cost * (growing * prompt + growing * (growing - 1) / 2)
            total += cost * (length - growing) * (window or 0)
        return total

    def forward(self, tokens: int, lengths: Sequence[int], predicted: int) -> float:
        """Returns the FLOPs of a forward over whole sequences.

        Args:
            tokens: input tokens.
            lengths: the length of each sequence.
            predicted: tokens whose log-probs are computed.
        """
        return self.token * tokens + sum(self.attention(n, n) for n in lengths) + self.head * predicted


def model_flops(model: Any) -> ModelFlops:
    """Reads off a Hugging Face causal model what its forward costs.

    Matrices of experts count for the share of tokens that each expert gets, `num_experts_per_tok` of all experts.
    """
    config = model.config.get_text_config()
    experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts")
    chosen = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
    share = chosen / experts if experts and chosen else 1.0
    token = trained = 0.0
    for name, module in backbone(model).named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if own.endswith("bias"):  # those of stacked experts look like matrices
                continue
            cost = _matrix_flops(module, parameter, ".experts." in f".{name}.", int(experts or 0), share)
            token += cost
            trained += cost if parameter.requires_grad else 0.0
    head = model.get_output_embeddings()
    predicted = 2.0 * head.weight.numel()
    learns = head.weight.requires_grad
    return ModelFlops(token, trained, predicted, predicted if learns else 0.0, _attention_pairs(config))


def _matrix_flops(
    module: nn.Module, parameter: torch.Tensor, in_experts: bool, experts: int, share: float
) -> float:
    """Returns the FLOPs of a token in one parameter: 0 unless it is a matrix, or the matrices of all experts.

    Args:
        module: the module that has it; weights in 4 bits don't have its shape.
        parameter: the parameter.
        in_experts: whether it belongs to one expert of many.
        experts: the number of experts, or 0.
        share: the share of the tokens that an expert gets.
    """
    if parameter.ndim == 3 and experts and parameter.shape[0] == experts:
        return 2.0 * parameter.numel() * share
    if parameter.ndim != 2:
        return 0.0
    sides = getattr(module, "in_features", None), getattr(module, "out_features", None)
    is_weight = isinstance(module, nn.Linear) and parameter is module.weight
    numel = (sides[0] or 0) * (sides[1] or 0) if is_weight else parameter.numel()
    return 2.0 * numel * (share if in_experts else 1.0)


def _attention_pairs(config: Any) -> tuple[tuple[float, int | None], ...]:
    """Returns the FLOPs of a pair of tokens by window: two products, QKᵀ and its weights times V."""
    heads = _first(config, "num_attention_heads", "n_head", "num_heads") or 0
    hidden = _first(config, "hidden_size", "n_embd") or 0
    width = _first(config, "head_dim") or (hidden / heads if heads else 0)
    keys = (_first(config, "qk_nope_head_dim") or 0) + (_first(config, "qk_rope_head_dim") or 0) or width
    cost = 2.0 * heads * (keys + (_first(config, "v_head_dim") or width))
    count = int(_first(config, "num_hidden_layers", "n_layer") or 0)
    window = _first(config, "sliding_window") if getattr(config, "use_sliding_window", True) else None
    kinds = (
        getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * count
    )
    full = sum(kind == "full_attention" for kind in kinds)
    sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    found = (
        (cost * full, None),
        (cost * sliding, int(window or _first(config, "attention_chunk_size") or 0) or None),
    )
    return tuple((each, reach) for each, reach in found if each)


def _first(config: Any, *names: str) -> float | None:
    """Returns the first of these options that a config has as a number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int | float) and value), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Returns the FLOP/s that a device can do in bfloat16; None for another dtype, or for a device that isn't known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name or "Laptop" in name:  # a part of the card, or a slower one
        return None
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)), None)


# --------------------------------------------------------------------------- counting


@dataclass
class Work:
    """Counts the FLOPs of a rank's passes over micro-batches. Example: `Work().flops` is 0.0"""

    flops: float = 0.0
    known: dict[int, ModelFlops] = field(default_factory=dict)  # id of a model → its costs

    def of(self, model: Any) -> ModelFlops:
        """Returns a model's costs, which are read off once."""
        if id(model) not in self.known:
            self.known[id(model)] = model_flops(model)
        return self.known[id(model)]

    def add(self, policy: Reference, samples: Sequence[Sample], layout: Layout, whole: bool) -> None:
        """Adds the pass over a micro-batch: a forward, and a backward where gradients are computed.

        Args:
            policy: the model.
            samples: the samples of the micro-batch.
            layout: the micro-batch's layout.
            whole: whether `shared` computes each completion's last token too.
        """
        costs = self.of(policy.policy.model if isinstance(policy, AdapterOff) else policy.model)
        predicted = sum(sample.length for sample in samples)
        if layout == "shared":
            prompts = {sample.origin: len(sample.prompt_ids) for sample in samples}
            ends = [len(sample.completion_ids) - (not whole) for sample in samples]
            tokens = sum(prompts.values()) + sum(ends)
            attention = sum(costs.attention(n, n) for n in prompts.values()) + sum(
                costs.attention(n, len(sample.prompt_ids) + n)
                for n, sample in zip(ends, samples, strict=True)
            )
        else:
            tokens = sum(sample.num_tokens for sample in samples)
            attention = sum(costs.attention(sample.num_tokens, sample.num_tokens) for sample in samples)
        self.flops += costs.token * tokens + attention + costs.head * predicted
        if torch.is_grad_enabled():  # the gradients of the inputs, and of the weights that are trained
            self.flops += (costs.token + costs.trained) * tokens + 2 * attention
            self.flops += (costs.head + costs.trained_head) * predicted


def rollout_flops(costs: ModelFlops, groups: Sequence[RolloutGroup]) -> float:
    """Returns the FLOPs of sampling some groups: each prompt once, then each token of each completion."""
    total = 0.0
    for group in groups:
        prompt = len(group.rollouts[0].prompt_ids(group.prompt))
        total += costs.token * prompt + costs.attention(prompt, prompt)
        for rollout in group.rollouts:
            length = len(rollout.completion_ids)
            total += (costs.token + costs.head) * length + costs.decoding(prompt, length)
    return total
