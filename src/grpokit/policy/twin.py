"""A small twin of a model: its own architecture and config, few layers, random weights, and a window that prompts outgrow.

What an architecture does beyond its window or past a switch of its rotary frequencies can be tried on the twin in a moment,
where the model itself would need thousands of tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..common.console import quiet_advice, quiet_transformers

WINDOW = 8  # tokens of the twin's attention window
SWITCH = 16  # tokens after which its rotary frequencies switch
VOCABULARY = 64
# Options that mean a window or a chunk of attention, in the configs of transformers.
WINDOWS = (
    "sliding_window",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
    "local_window_size",
)
# Sizes that can be made smaller without regard to others.
FREE_SIZES = {
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "ffn_dim": 48,
    "n_inner": 48,
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def reach(model: Any) -> int | None:
    """Returns the tokens up to which a model's window and rotary frequencies make no difference; None: any number."""
    config = model.config.get_text_config()
    found = [w for w in _windows(config).values() if w]
    switch = _rotary(config).get("original_max_position_embeddings")
    return min([*found, *([switch] if switch else [])], default=None)


def make_twin(model: Any) -> Any:
    """Makes the twin of a model, on its device, in float32 and in eval mode.

    Raises:
        ValueError: transformers can't build the architecture so small.
    """
    problem: Exception | None = None
    for shrink in (_narrow, _shorten):
        config = copy.deepcopy(model.config)
        shrink(config.get_text_config())
        for attention in dict.fromkeys((_attention_of(model), "eager")):
            try:
                return _build(type(model), config, attention).to(model.device)
            except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError, KeyError) as error:
                problem = error
    raise ValueError(f"no small {type(model).__name__} can be built: {problem}") from problem


def _attention_of(model: Any) -> str:
    """The attention that a model uses, where it needs no package of its own; else sdpa."""
    own = model.config._attn_implementation
    return own if own in ("sdpa", "eager") else "sdpa"


def _build(kind: type, config: Any, attention: str) -> Any:
    with torch.random.fork_rng(devices=[]), quiet_transformers(), quiet_advice(), torch.device("cpu"):
        torch.manual_seed(0)
        config._attn_implementation = attention
        config.dtype = None
        twin = kind._from_config(config, attn_implementation=attention, dtype=torch.float32)  # pyright: ignore
        _spread(twin)
    twin.generation_config.eos_token_id = None  # its completions end by their length alone
    return twin.eval()


@torch.no_grad()
def _spread(twin: nn.Module) -> None:
    """Draws weights so large that every part of the network moves the logits."""
    for name, parameter in twin.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, 1.0 / parameter.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)


def _shorten(config: Any) -> None:
    """Leaves few layers, of each kind, a small vocabulary, and a window and a switch that short prompts outgrow."""
    _set(config, "vocab_size", VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if isinstance(getattr(config, name, None), int | list):
            setattr(config, name, 0)
    for name in _windows(config):
        setattr(config, name, WINDOW)
    rotary = _rotary(config)
    if rotary.get("original_max_position_embeddings"):
        rotary["original_max_position_embeddings"] = SWITCH
        rotary["factor"] = rotary.get("factor") or 4.0
    if getattr(config, "original_max_position_embeddings", None):
        config.original_max_position_embeddings = SWITCH
    layers = getattr(config, "num_hidden_layers", None)
    kinds = getattr(config, "layer_types", None)
    if isinstance(layers, int) and layers > 2:
        kept = layers_to_keep(kinds) if kinds else min(layers, 4)
        config.num_hidden_layers = kept
        if kinds:
            config.layer_types = list(kinds[:kept])
        for name, value in list(vars(config).items()):  # other lists that have one entry for each layer
            if isinstance(value, list) and len(value) == layers and name != "layer_types":
                setattr(config, name, value[:kept])
    if getattr(config, "max_window_layers", None):
        config.max_window_layers = 1


def layers_to_keep(kinds: list[str], most: int = 8) -> int:
    """Returns how many of a model's first layers have each kind of layer, at least two.

    Example:
        >>> layers_to_keep(["sliding", "sliding", "full", "sliding", "sliding", "full"])
        3
    """
    first = [kinds.index(kind) for kind in set(kinds)]
    return min(max([*first, 1]) + 1, most, len(kinds))


def _narrow(config: Any) -> None:
    """Shortens a config, and makes its layers narrow too."""
    _shorten(config)
    for name, size in FREE_SIZES.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(size, getattr(config, name)))
    for name in EXPERTS:
        experts = getattr(config, name, None)
        if isinstance(experts, int):
            groups = getattr(config, "n_group", None) or 1
            used = getattr(config, "num_experts_per_tok", None) or 1
            setattr(config, name, min(experts, max(4, 2 * used) * groups))


def _windows(config: Any) -> dict[str, int]:
    """The options of a config that are a window of so many tokens."""
    found = {name: getattr(config, name, None) for name in WINDOWS}
    if getattr(config, "use_sliding_window", True) is False:
        found.pop("sliding_window")
    return {name: size for name, size in found.items() if isinstance(size, int) and size > 0}


def _rotary(config: Any) -> dict[str, Any]:
    """The parameters of the rotary embedding, where a config has one set of them."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return found if isinstance(found, dict) else {}


def _set(config: Any, name: str, most: int) -> None:
    if isinstance(getattr(config, name, None), int):
        setattr(config, name, min(most, getattr(config, name)))
