"""grpokit's log-prob head in the models of TRL's trainer: float32 logits (TRL's are rounded to bf16), and no [N, V] of them."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

from torch import Tensor

from ..logprobs import linear_logprob
from ..policy.architecture import backbone, head

# Where their configs scale the logits in a way that grpokit's head doesn't know, TRL's head stays.
UNKNOWN_SCALES = ("output_multiplier",)
UNKNOWN_MODELS = ("hyperclovax",)


def add_head(model: Any, temperature: float, output: type) -> bool:
    """Lets grpokit's head score the tokens of `model(..., labels=, fused_lm_head=True)`. All other calls stay as they are.

    Args:
        model: a causal model that has TRL's fused head.
        temperature: of the distribution that was sampled from.
        output: TRL's class of the result.

    Returns:
        Whether the model has it now; not where only TRL knows how the model scales its logits.
    """
    config, projection = model.config.get_text_config(), model.get_output_embeddings()
    unknown = config.model_type in UNKNOWN_MODELS or any(
        getattr(config, name, None) is not None for name in UNKNOWN_SCALES
    )
    if unknown or getattr(projection, "weight", None) is None:
        return False
    theirs = model.forward

    # Keeps the original signature, by which `generate` checks its arguments.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **named: Any) -> Any:
        if not fused_lm_head or named.get("shift_labels") is not None or named.get("output_router_logits"):
            labels = {} if labels is None else {"labels": labels}
            return theirs(*args, fused_lm_head=fused_lm_head, **labels, **named)
        hidden = backbone(self)(*args, **named, use_cache=False).last_hidden_state[:, :-1]  # [B, S, H]
        labels = labels[:, 1:].to(hidden.device)
        scored = labels != -100
        logps, entropies = linear_logprob(
            hidden[scored], _whole(head(self)), labels[scored], temperature=temperature, with_entropy=True
        )
        assert entropies is not None

        def padded(values: Tensor) -> Tensor:
            return values.new_zeros(scored.shape).masked_scatter(scored, values)

        return output(log_probs=padded(logps), entropy=padded(entropies))

    model.forward = types.MethodType(forward, model)
    return True


def _whole(part: Any) -> Any:
    """Gathers the parameters of a head that FSDP2 has sharded."""
    if not hasattr(part.weight, "full_tensor"):
        return part
    bias = None if part.bias is None else part.bias.full_tensor()
    return dataclasses.replace(part, weight=part.weight.full_tensor(), bias=bias)
