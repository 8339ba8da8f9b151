"""The checks of `make_loss`: combinations without meaning, options without effect, and values that cannot work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .correction import CORRECTION_MODES, PRESETS, SEQUENCE_LEVELS, Correction
from .kl import KL_ESTIMATORS, KL_GRADIENTS, TEACHER_GRADIENTS
from .loss import Loss
from .surrogate import Surrogate


def check_combination(
    loss_type: str, part: Surrogate, level: str, reduction: str, fixed_level: str | None
) -> None:
    """Checks that the parts mean something together.

    Args:
        loss_type: the loss's name, for the message.
        part: the surrogate.
        level: a key of RATIO_LEVELS.
        reduction: a key of REDUCTIONS.
        fixed_level: the only ratio level that this loss may have, or None.

    Raises:
        ValueError: a combination has no meaning. The message names the flag.
    """
    if level not in part.ratio_levels:
        raise ValueError(
            f"ratio_level {level}: means nothing with surrogate {part.name}, which is defined on {' or '.join(part.ratio_levels)}"
        )
    if fixed_level is not None and level != fixed_level:
        raise ValueError(
            f"ratio_level {level}: loss_type {loss_type} is defined by its {fixed_level} ratio; leave ratio_level out, or "
            "choose another loss_type"
        )
    if part.reductions is not None and reduction not in part.reductions:
        raise ValueError(f"reduction {reduction}: surrogate {part.name} fixes its own; leave reduction out")


def make_correction(given: Mapping[str, Any]) -> Correction | None:
    """Builds the correction that the options of CORRECTION_OPTIONS ask for.

    Args:
        given: the options by name; None means that it was not given. `correction` names a preset, which the others change.

    Returns:
        The correction, or None without a preset and a mode.

    Raises:
        ValueError: an option is given that would have no effect, or has a value that cannot work.
    """
    given = {key: value for key, value in given.items() if value is not None and value is not False}
    name = given.pop("correction", None)
    if name is not None and name not in PRESETS:
        raise ValueError(f"correction {name!r}: is not one of {', '.join(PRESETS)}")
    own = {key.removeprefix("correction_"): value for key, value in given.items()}
    preset: dict[str, Any] = {} if name is None else dict(PRESETS[name])
    mode = own.get("mode", preset.get("mode"))
    if preset and mode != preset["mode"]:
        preset = {"level": preset["level"]}  # its bounds are those of its mode
    if mode is None:
        if own:
            key, value = next(iter(own.items()))
            raise ValueError(
                f"correction_{key} {value}: acts only with a correction_mode; set it to {', '.join(CORRECTION_MODES)}"
            )
        return None
    _check_used(own, mode)
    return Correction(**(preset | own))


# Options that do nothing with a mode.
_NOT_USED_BY = {
    "truncate": ("high", "estimator"),
    "mask": ("cap", "estimator"),
    "reject": ("cap", "normalize"),
}


def _check_used(own: Mapping[str, Any], mode: str) -> None:
    for key in _NOT_USED_BY.get(mode, ()):
        if own.get(key):
            raise ValueError(f"correction_{key} {own[key]}: not used by correction_mode {mode}")
    for key in ("keep_low", "keep_high"):
        if key in own and "keep" not in own:
            raise ValueError(
                f"correction_{key} {own[key]}: acts only with correction_keep; set it to {' or '.join(SEQUENCE_LEVELS)}"
            )


def _check_with_loss(loss: Loss, correction: Correction) -> None:
    """Raises ValueError where the correction does not go with the loss or with another option."""
    flag = "correction_keep" if correction.keep is not None else "correction_normalize"
    if loss.surrogate.correction_inside and (correction.keep is not None or correction.normalize):
        raise ValueError(
            f"{flag}: {loss.name} takes the weights into its ratio, where this has no meaning; leave it out"
        )
    by_token = correction.mode != "truncate" and correction.level == "token"
    if loss.rejected_tokens == "drop" and correction.keep is not None and by_token:
        raise ValueError(
            "correction_keep: would be asked again of the tokens that rejected_tokens drop has left of a sequence; use "
            "correction_mode truncate, or rejected_tokens keep"
        )
    if correction.normalize and loss.rejected_tokens == "drop":
        raise ValueError(
            "correction_normalize: the mean is over all tokens, and rejected_tokens drop takes some out; leave one of them out"
        )


def check_terms(loss: Loss, kl_estimator: str | None, kl_gradient: str | None) -> None:
    """Checks the KL and entropy terms and the masks.

    Args:
        loss: the loss with its defaults filled in.
        kl_estimator: the flag as given; None if it was not given.
        kl_gradient: likewise.

    Raises:
        ValueError: a term or a mask cannot work. The message names the flag.
    """
    for flag in ("beta", "entropy_coef", "teacher_coef", "top_entropy_quantile", "opsm_threshold"):
        value = getattr(loss, flag)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise ValueError(f"{flag} {value!r}: must be a finite number")
    if not 0 <= loss.beta < float("inf"):
        raise ValueError(f"beta {loss.beta}: must be 0 (no KL penalty) or above; 0.04 is usual")
    if loss.kl_estimator not in KL_ESTIMATORS:
        raise ValueError(
            f"kl_estimator {loss.kl_estimator!r}: is not one of {', '.join(KL_ESTIMATORS)}; k3 is the default"
        )
    if loss.kl_gradient not in KL_GRADIENTS:
        raise ValueError(f"kl_gradient {loss.kl_gradient!r}: is not one of {', '.join(KL_GRADIENTS)}")
    for flag, value in (("kl_estimator", kl_estimator), ("kl_gradient", kl_gradient)):
        if value is not None and not loss.beta:
            raise ValueError(
                f"{flag} {value}: acts only with beta above 0; set beta (0.04 is usual) or leave it out"
            )
    if not -float("inf") < loss.entropy_coef < float("inf"):
        raise ValueError(f"entropy_coef {loss.entropy_coef}: must be a finite number; 0.001 is usual")
    if loss.opsm_threshold is not None and loss.opsm_threshold < 0:
        raise ValueError(f"opsm_threshold {loss.opsm_threshold}: must be at least 0; 0.1 is usual")
    if loss.teacher_coef < 0:
        raise ValueError(f"teacher_coef {loss.teacher_coef}: must be 0 (no teacher) or above; 1 is usual")
    if loss.teacher_kl_gradient not in TEACHER_GRADIENTS:
        raise ValueError(
            f"teacher_kl_gradient {loss.teacher_kl_gradient!r}: is not one of {', '.join(TEACHER_GRADIENTS)}"
        )
    q = loss.top_entropy_quantile
    if q is not None and not 0 < q <= 1:
        raise ValueError(
            f"top_entropy_quantile {q}: the share of tokens that keep their policy term, above 0 and at most 1; 0.2 is usual"
        )
    if loss.rejected_tokens == "drop" and loss.teacher_coef:
        raise ValueError(
            "rejected_tokens drop: takes tokens from the teacher too, whose term is over all of them; leave rejected_tokens at "
            "keep"
        )
    if loss.rejected_tokens not in ("keep", "drop"):
        raise ValueError(f"rejected_tokens {loss.rejected_tokens!r}: is not one of keep, drop")
    if loss.rejected_tokens == "drop" and (
        loss.opsm_threshold is not None or loss.surrogate.anchor == "sampler"
    ):
        raise ValueError(
            f"rejected_tokens drop: {'opsm_threshold' if loss.opsm_threshold is not None else loss.name} rejects by the policy "
            "being trained, which the counts cannot know beforehand; leave rejected_tokens at keep"
        )
    if loss.correction is not None:
        _check_with_loss(loss, loss.correction)
    if loss.rejected_tokens == "drop" and not loss.rejects_tokens:
        raise ValueError(
            "rejected_tokens drop: removes rejected tokens from the counts, and only correction_mode mask or reject and "
            "correction_keep know them beforehand; set it, or leave rejected_tokens at keep"
        )
