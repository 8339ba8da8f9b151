"""The checks of `make_loss`: combinations without meaning, options without effect, and values that cannot work."""

from __future__ import annotations

import math

from .correction import Correction, check_correction
from .kl import KL_ESTIMATORS, KL_GRADIENTS
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


def make_correction(
    mode: str | None, level: str | None, cap: float | None, low: float | None, high: float | None
) -> Correction | None:
    """Builds the correction that the flags ask for.

    Args:
        mode: `truncate`, `mask`, or None for no correction.
        level: a key of CORRECTION_LEVELS.
        cap: the largest weight, for `truncate`.
        low: the smallest weight kept, for `mask`.
        high: the largest weight kept, for `mask`.

    Returns:
        The correction, or None without a `mode`.

    Raises:
        ValueError: a flag is given that would have no effect, or has a value that cannot work.
    """
    given = {"level": level, "cap": cap, "low": low, "high": high}
    given = {key: value for key, value in given.items() if value is not None}
    if mode is None:
        if given:
            key, value = next(iter(given.items()))
            raise ValueError(
                f"correction_{key} {value}: acts only with a correction_mode; set it to truncate or mask"
            )
        return None
    unused = {"truncate": ("low", "high"), "mask": ("cap",)}.get(mode, ())
    for key in unused:
        if key in given:
            raise ValueError(f"correction_{key} {given[key]}: not used by correction_mode {mode}")
    correction = Correction(mode=mode, **given)
    check_correction(correction)
    return correction


def check_terms(loss: Loss, kl_estimator: str | None, kl_gradient: str | None) -> None:
    """Checks the KL and entropy terms and the masks.

    Args:
        loss: the loss with its defaults filled in.
        kl_estimator: the flag as given; None if it was not given.
        kl_gradient: likewise.

    Raises:
        ValueError: a term or a mask cannot work. The message names the flag.
    """
    for flag in ("beta", "entropy_coef", "top_entropy_quantile", "opsm_threshold"):
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
    q = loss.top_entropy_quantile
    if q is not None and not 0 < q <= 1:
        raise ValueError(
            f"top_entropy_quantile {q}: the share of tokens that keep their policy term, above 0 and at most 1; 0.2 is usual"
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
    if loss.rejected_tokens == "drop" and (loss.correction is None or loss.correction.mode != "mask"):
        raise ValueError(
            "rejected_tokens drop: removes rejected tokens from the counts, and only correction_mode mask knows them "
            "beforehand; set it, or leave rejected_tokens at keep"
        )
