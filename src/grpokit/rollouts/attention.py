"""Attention for one new token per sequence on a CPU: grouped queries read their keys without copying them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LIGHT = "grpokit_light"


def light_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The library's sdpa attention, but without repeated keys under a mask.

    With padding, the library copies every key and value H/K times for each token, because that is faster on GPUs.

    Args:
        module: the attention layer.
        query: [B, H, l, D].
        key: [B, K, L, D].
        value: [B, K, L, D].
        attention_mask: the mask, or None.
        scaling: the factor of the scores; None: 1/√D.

    Returns:
        The output [B, l, H, D], and None for the weights.
    """
    if query.shape[2] > 1 or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2), None


AttentionInterface.register(LIGHT, light_attention)  # pyright: ignore[reportArgumentType]
AttentionMaskInterface.register(LIGHT, sdpa_mask)  # pyright: ignore[reportArgumentType]


@contextmanager
def light(model: Any) -> Iterator[None]:
    """Makes `model` use `light_attention` where it would use the library's sdpa on a CPU."""
    config = model.config
    if config._attn_implementation != "sdpa" or model.device.type != "cpu":
        yield
        return
    config._attn_implementation = LIGHT
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
