"""The rules of the options of the optimizer, the trained parameters and the reference."""

from __future__ import annotations

import difflib
import re
from typing import Any

from .rules import Rule

OPTIMIZERS = ("adamw", "muon", "adamw_8bit")
# transformers' names of the same optimizers.
THEIRS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
}


def _other_name(config: Any) -> str:
    """Says what to write for an optimizer that isn't known by that name."""
    if config.optim in THEIRS:
        return f"is transformers' name; here it is {THEIRS[config.optim]}"
    near = difflib.get_close_matches(config.optim, OPTIMIZERS, n=1)  # names are short: lion is not near muon
    return (
        f"did you mean {near[0]}? " if near else ""
    ) + "expected adamw, muon, adamw_8bit, or file.py:function"


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return text != ""


OPTIMIZER_RULES = [
    Rule(
        "optim",
        lambda c: c.optim in OPTIMIZERS or ":" in c.optim,
        _other_name,
    ),
    Rule(
        "optim",
        lambda c: c.optim != "adamw_8bit" or c.dtype != "float64",
        "computes in float32; use --dtype float32 or bfloat16, or --optim adamw",
    ),
    Rule("muon_momentum", lambda c: 0 <= c.muon_momentum < 1, "must be at least 0 and below 1"),
    *(
        Rule(
            flag,
            lambda c, flag=flag: all(map(_is_pattern, getattr(c, flag))),
            "is no regular expression; a name such as embed_tokens is one",
        )
        for flag in ("freeze_parameters", "trainable_parameters")
    ),
    Rule(
        "freeze_parameters",
        lambda c: not c.freeze_parameters or c.lora_r == 0,
        "an adapter is trained alone; leave out this flag or --lora_r",
    ),
    Rule(
        "trainable_parameters",
        lambda c: not c.trainable_parameters or len(c.freeze_parameters) > 0,
        "every parameter is trained; to train these alone, add --freeze_parameters '.*'",
    ),
    Rule(
        "kl_in_reward",
        lambda c: not c.kl_in_reward or c.beta > 0,
        "is multiplied by --beta, which is 0; set --beta (0.04 is usual)",
    ),
    *(
        Rule(
            flag,
            lambda c, flag=flag: not c.kl_in_reward or getattr(c, flag) is None,
            "is for a KL term in the loss, which --kl_in_reward replaces; leave one of them out",
        )
        for flag in ("kl_estimator", "kl_gradient")
    ),
    Rule(
        "sync_ref_model",
        lambda c: not c.sync_ref_model or c.beta > 0,
        "there is no reference with --beta 0; set --beta (0.04 is usual)",
    ),
    Rule(
        "sync_ref_model",
        lambda c: not c.sync_ref_model or c.lora_r == 0,
        "with an adapter, the reference is the model without it, and cannot move; leave out this flag or --lora_r",
    ),
    Rule(
        "ref_model_mixup_alpha",
        lambda c: 0 < c.ref_model_mixup_alpha <= 1,
        "must be above 0 and at most 1",
    ),
    Rule("ref_model_sync_steps", lambda c: c.ref_model_sync_steps >= 1, "must be at least 1"),
]
