"""The parts of a Hugging Face causal model: backbone, head, layers, cache, and how a micro-batch passes through them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..logprobs import Head
from ..types import MicroBatch


def backbone(model: Any) -> nn.Module:
    """Returns the part of a Hugging Face causal model that computes hidden states."""
    named = getattr(model, model.base_model_prefix, None)  # Llama 4's class names a part that it lacks
    return model.model if named is None else named


def head(model: Any) -> Head:
    """Returns the output projection, with the scale or softcap that the architecture's config names."""
    projection, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = _first_of(config, SCALES) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return Head(
        projection.weight, getattr(projection, "bias", None), float(scale), _first_of(config, SOFTCAPS)
    )


# Names of the head's factor and of its softcap in the configs of transformers.
SCALES = ("logit_scale", "lm_head_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _first_of(config: Any, names: tuple[str, ...]) -> float | None:
    """Returns the first of these options that a config has."""
    return next((value for name in names if (value := getattr(config, name, None))), None)


def layers(model: Any) -> list[nn.Module]:
    """Returns the blocks that the architecture says must not be split. Each is sharded, and gathered, on its own."""
    names = set(model._no_split_modules or ())
    return [module for module in backbone(model).modules() if type(module).__name__ in names]


@dataclass(frozen=True, eq=False)
class BackboneOutput:
    """What a backbone's forward gives for its M input tokens.

    Example:
        >>> BackboneOutput(torch.zeros(5, 8)).router_logits
        ()
    """

    hidden: Tensor  # [M, H]
    router_logits: tuple[Tensor, ...] = ()  # [M, E] for each layer with experts; () unless asked for


def run_backbone(model: Any, with_router: bool, **inputs: Any) -> BackboneOutput:
    """Runs a model's backbone. Returns its results with batch and position flattened to one axis."""
    asked = {"output_router_logits": True} if with_router else {}
    output = backbone(model)(**inputs, **asked)
    logits = (getattr(output, "router_logits", None) or ()) if with_router else ()
    return BackboneOutput(
        output.last_hidden_state.flatten(0, 1), tuple(of_layer.flatten(0, -2) for of_layer in logits)
    )


def pass_through(model: Any, micro: MicroBatch, with_router: bool = False) -> BackboneOutput:
    """Passes a micro-batch's tokens through the backbone. `micro.at` selects the hidden states that predict a token.

    The `padded` and `packed` layouts need no attention mask. Padding is on the right, where a causal model does not look, and
    the position ids of packed samples start again at 0. In the `shared` layout the prompts go first and leave their keys and
    values in a cache. Each completion continues its prompt, and the gradient flows back through the cache.

    Args:
        model: a Hugging Face causal model.
        micro: the micro-batch.
        with_router: whether to return the routers' logits.

    Returns:
        The hidden states [M, H] and, where asked for, the routers' logits: those of the prompts' tokens, where they are shared,
        and then those of the samples' tokens.
    """
    positions = {} if micro.position_ids is None else {"position_ids": micro.position_ids}
    if micro.prefix is None:
        return run_backbone(model, with_router, input_ids=micro.input_ids, use_cache=False, **positions)
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    how: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    prompts = run_backbone(model, with_router, input_ids=micro.prefix.input_ids, **how)
    held: list[Any] = cache.layers
    for layer in held:  # repeats a prompt's keys and values for each of its completions
        layer.keys = layer.keys.index_select(0, micro.prefix.of)
        layer.values = layer.values.index_select(0, micro.prefix.of)
    mask = micro.prefix.mask
    completions = run_backbone(
        model, with_router, input_ids=micro.input_ids, attention_mask=mask, **how, **positions
    )
    # Always joined: a part that `micro.at` never selects then gets a gradient of zeros instead of none.
    # Ranks reduce gradients in both passes, so each must go backward through both.
    of_layers = zip(prompts.router_logits, completions.router_logits, strict=True)
    return BackboneOutput(
        torch.cat([prompts.hidden, completions.hidden]), tuple(torch.cat(both) for both in of_layers)
    )


def obstacle(model: Any, longest: int) -> str | None:
    """Returns why sequences of up to `longest` tokens cannot continue from a cache of keys and values; None if they can."""
    from transformers import DynamicCache, GenerationMixin
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    takes = inspect.signature(backbone(model).forward).parameters
    if model.config.is_encoder_decoder or not {"position_ids", "past_key_values"} <= takes.keys():
        return "it takes no position ids together with a cache"
    library_way = vars(GenerationMixin)["prepare_inputs_for_generation"]
    if (
        type(model).prepare_inputs_for_generation is not library_way
        or not model._supports_default_dynamic_cache()
    ):
        return "it prepares its inputs in its own way"
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
