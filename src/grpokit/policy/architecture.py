"""What is known of a Hugging Face causal model: its parts, what its cache holds, how a micro-batch goes through it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..logprobs import Head
from ..types import MicroBatch


def backbone(model: Any) -> nn.Module:
    """The part of a Hugging Face causal model that ends in hidden states."""
    return getattr(model, model.base_model_prefix)


def head(model: Any) -> Head:
    """The rest: the output projection, with the scale or softcap that the architecture's config names."""
    projection, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return Head(
        projection.weight,
        getattr(projection, "bias", None),
        float(scale),
        getattr(config, "final_logit_softcapping", None),
    )


def layers(model: Any) -> list[nn.Module]:
    """The blocks that the architecture says must stay whole: each is sharded, and gathered, by itself."""
    names = set(model._no_split_modules or ())
    return [module for module in backbone(model).modules() if type(module).__name__ in names]


def hidden_states(model: Any, micro: MicroBatch) -> Tensor:
    """The hidden states of a micro-batch's tokens, one after the other [M, H]: `micro.at` says which are asked for.

    No attention mask where rows are whole: the padding is on the right, where a causal model doesn't look; of packed
    rows, position ids that start again at 0 tell the model. Prompts that stand apart go first, and leave their keys and
    values in a cache, through which the gradient comes back to them; each completion goes on from its prompt's.
    """
    forward = backbone(model)
    positions = {} if micro.position_ids is None else {"position_ids": micro.position_ids}
    if micro.prefix is None:
        return forward(input_ids=micro.input_ids, use_cache=False, **positions).last_hidden_state.flatten(
            0, 1
        )
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    prompts = forward(input_ids=micro.prefix.input_ids, past_key_values=cache, use_cache=True)
    held: list[Any] = cache.layers
    for layer in held:  # a prompt's keys and values for each of its completions
        layer.keys = layer.keys.index_select(0, micro.prefix.of)
        layer.values = layer.values.index_select(0, micro.prefix.of)
    completions = forward(
        input_ids=micro.input_ids,
        attention_mask=micro.prefix.mask,
        past_key_values=cache,
        use_cache=True,
        **positions,
    )
    # Joined even where only one part is asked for: then the gradient of the other is zeros, and not nothing. Ranks
    # reduce gradients in both passes, so each must go backwards through both.
    return torch.cat([part.last_hidden_state.flatten(0, 1) for part in (prompts, completions)])


def obstacle(model: Any, longest: int) -> str | None:
    """Why sequences of up to `longest` tokens cannot be continued from a cache of keys and values; None if they can."""
    from transformers import DynamicCache, GenerationMixin
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    takes = inspect.signature(backbone(model).forward).parameters
    if model.config.is_encoder_decoder or not {"position_ids", "past_key_values"} <= takes.keys():
        return "it takes no position ids beside a cache"
    library_way = vars(GenerationMixin)["prepare_inputs_for_generation"]
    if (
        type(model).prepare_inputs_for_generation is not library_way
        or not model._supports_default_dynamic_cache()
    ):
        return "it has a way of its own to prepare its inputs"
    if getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        return "its layers share their caches"
    layers = DynamicCache(config=model.config).layers
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if model._is_stateful or not known:
        return "its cache holds more than the keys and values of each token"
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    if windows and min(windows) < longest:
        window = min(windows)
        return f"its attention has a sliding window of {window} tokens, and sequences may be of {longest}"
    return None
