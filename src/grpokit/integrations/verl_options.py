"""verl's actor config → a loss of grpokit's, with verl's meaning and defaults; and what verl can't compute."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..losses import LOSSES, Loss, Surrogate, find_surrogate, make_loss
from ..losses.family import COMMON_OPTIONS

# verl's loss_agg_mode → the reduction that divides alike.
AGGREGATIONS: Mapping[str, str] = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant_length",
}
# verl has these itself, or nothing like them.
_INSTEAD: Mapping[str, str] = {
    "reduction": "set actor.loss_agg_mode, by which verl divides its KL and entropy terms too",
    "max_completion_length": "set actor.loss_scale_factor",
    "beta": "set actor.use_kl_loss and actor.kl_loss_coef: verl adds the KL term itself",
    "kl_estimator": "set actor.kl_loss_type: verl adds the KL term itself",
    "kl_gradient": "set actor.kl_loss_type, whose names with a + have the gradient of k2",
    "entropy_coef": "set actor.entropy_coeff: verl adds the entropy bonus itself",
    "top_entropy_quantile": "leave it out: its threshold is over the whole update, before the first backward pass",
    "teacher_coef": "use verl's distillation",
    "teacher_kl_gradient": "use verl's distillation",
    "opsm_threshold": "leave it out: verl doesn't hand the sampler's log-probs to a loss",
    "rejected_tokens": "set algorithm.rollout_correction",
}


def loss_from_verl(name: str, config: Any, loss_agg_mode: str) -> Loss:
    """Makes the loss that verl's actor config describes.

    Options that the actor config has are read from there, verl's defaults included. `policy_loss.grpokit` replaces them, and
    has all others.

    Args:
        name: a key of LOSSES.
        config: verl's ActorConfig.
        loss_agg_mode: `actor.loss_agg_mode`.

    Raises:
        ValueError: verl can't compute the loss, or an option has no meaning with it. The message says why.
    """
    row, own = LOSSES[name], _own_options(config)
    part = find_surrogate(own.get("surrogate", row.surrogate))
    check_loss(name, part, config)
    reduction = _reduction(loss_agg_mode)
    options = {**_read(name, part, own.get("ratio_level", row.ratio_level), config, own), **own}
    if reduction == "constant_length":
        options["max_completion_length"] = _constant_length(config)
    return _made(name, reduction, tuple(options.items()))


def check_loss(name: str, part: Surrogate, config: Any) -> None:
    """Raises ValueError for a loss that needs what verl doesn't give to a loss function."""
    reduction = LOSSES[name].reduction
    if reduction not in AGGREGATIONS.values():
        raise ValueError(
            f"grpokit/{name}: its reduction is {reduction}, and verl tells a loss neither the tokens of a rank nor those of a "
            f"prompt; verl has loss_agg_mode {', '.join(AGGREGATIONS)}, with any other of grpokit's losses"
        )
    if part.needs_update in ("group", "step"):
        raise ValueError(
            f"grpokit/{name}: couples the tokens of a whole {part.needs_update}, so it needs the log-probs of the whole update "
            "before the first backward pass, and verl hands its loss one micro-batch after the other; grpokit's own trainer has "
            "this loss"
        )
    if part.anchor == "sampler" and not _bypasses(config):
        raise ValueError(
            f"grpokit/{name}: its ratio is to the sampler, and verl hands the sampler's log-probs to a loss only in place of "
            "old_log_probs: set algorithm.rollout_correction.bypass_mode=true, and tell the loss so with "
            "+actor_rollout_ref.actor.policy_loss.rollout_correction.bypass_mode=true"
        )


@functools.cache
def _made(name: str, reduction: str, options: tuple[tuple[str, Any], ...]) -> Loss:
    """Makes the loss once, so that its notes are shown once."""
    return make_loss(name, reduction=reduction, **dict(options))


def _reduction(loss_agg_mode: str) -> str:
    if loss_agg_mode not in AGGREGATIONS:
        raise ValueError(
            f"loss_agg_mode {loss_agg_mode!r}: grpokit's losses have no such reduction; set actor.loss_agg_mode to "
            f"{', '.join(AGGREGATIONS)}"
        )
    return AGGREGATIONS[loss_agg_mode]


def _own_options(config: Any) -> dict[str, Any]:
    """Reads `policy_loss.grpokit`. Raises ValueError for an option that verl has in another place."""
    policy_loss = config.get("policy_loss", None)
    own = dict((policy_loss.get("grpokit", None) if policy_loss is not None else None) or {})
    for key, value in own.items():
        if key in _INSTEAD or key in COMMON_OPTIONS:
            instead = _INSTEAD.get(key, "set algorithm.rollout_correction, whose weights multiply the loss")
            raise ValueError(f"policy_loss.grpokit.{key} {value}: is not an option inside verl; {instead}")
    return own


def _read(
    name: str, part: Surrogate, ratio_level: str, config: Any, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads the surrogate's options from the actor config, with the meaning that they have in verl's losses.

    Args:
        name: the loss, for messages.
        part: the surrogate.
        ratio_level: a key of RATIO_LEVELS.
        config: verl's ActorConfig.
        own: options that replace these.
    """
    low, high = (_clip_range(config, side) for side in ("low", "high"))
    options = part.options
    if "epsilon_low_cap" in options:  # a range of the ratio itself
        found = {"epsilon_low_cap": 1 - low, "epsilon_high": 1 + high}
    elif "dppo_delta" in options:
        found = {"dppo_delta": low, "dppo_cap": config.get("clip_ratio_c", 20.0)}
    else:
        found = {name: value for name, value in (("epsilon", low), ("epsilon_high", high)) if name in options}
        if "delta" in options and ratio_level == "token":
            found["delta"] = config.get("clip_ratio_c", 3.0)
    only = {"epsilon", "dppo_delta"} & set(found)
    if only and "epsilon_high" not in options and low != high and not only & set(own):
        raise ValueError(
            f"clip_ratio_low {low:g}, clip_ratio_high {high:g}: grpokit/{name} has one range for both sides; set both to {low:g}"
        )
    taus = {key: config.get(key, None) for key in ("tau_pos", "tau_neg") if key in options}
    return found | {key: value for key, value in taus.items() if value is not None}


def _clip_range(config: Any, side: str) -> float:
    value = config.get(f"clip_ratio_{side}", None)
    return config.get("clip_ratio", 0.2) if value is None else value


def _constant_length(config: Any) -> int:
    length = config.get("loss_scale_factor", None)
    if length is None:
        raise ValueError(
            "loss_scale_factor is missing: loss_agg_mode seq-mean-token-sum-norm divides by it. Without it, verl divides by the "
            "width of the padded batch, which isn't constant; set actor.loss_scale_factor=${data.max_response_length}"
        )
    return int(length)


def _bypasses(config: Any) -> bool:
    """Checks whether old_log_probs are the sampler's, as far as the actor config says so."""
    policy_loss = config.get("policy_loss", None)
    correction = policy_loss.get("rollout_correction", None) if policy_loss is not None else None
    return bool(correction is not None and correction.get("bypass_mode", False))
