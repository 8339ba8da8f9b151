"""THE TABLE: loss_type → row (ratio level, surrogate, reduction, defaults, source). `make_loss` composes a loss from it.

Every loss is a composition, and this is the only file that knows losses by name. To add one: write a function with
`@surrogate(...)` (unless it shares another's) and a row here. A package of your own calls `register` instead.

Example:
    >>> print(make_loss("dapo", beta=0.04))
    dapo = token ratio × clip × token_mean (epsilon 0.2, epsilon_high 0.28, beta 0.04)
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from torch import Tensor

from . import coupled, other_surrogates, surrogates  # noqa: F401 (they enter their functions in SURROGATES)
from .checks import check_combination, check_terms, make_correction
from .correction import Correction
from .lint import notes
from .loss import Loss
from .ratio import RATIO_LEVELS
from .reductions import REDUCTIONS
from .surrogate import SURROGATES, Surrogate, check_options


@dataclass(frozen=True)
class LossRow:
    """One row of the table: the parts of a loss, its paper's defaults, and its source. Example: `LOSSES["dapo"]`."""

    ratio_level: str  # key of RATIO_LEVELS
    surrogate: str  # key of SURROGATES
    reduction: str  # key of REDUCTIONS
    paper: str
    summary: str  # one line: how it differs from the others
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they differ from the surrogate's
    scale_rewards: str = "group"  # default of --scale_rewards, for the estimator `group`
    fixed_level: bool = False  # True where another ratio level would be another loss


_ROWS: dict[str, LossRow] = {
    "grpo": LossRow(
        "token", "clip", "sequence_mean", "arXiv:2402.03300", "each completion weighs the same, long or short"
    ),
    "bnpo": LossRow(
        "token",
        "clip",
        "rank_token_mean",
        "the loss of this name in TRL and ms-swift (not arXiv:2506.02864)",
        "token mean of each rank: depends on the rank layout by definition",
    ),
    "dr_grpo": LossRow(
        "token",
        "clip",
        "constant_length",
        "arXiv:2503.20783",
        "divides by a constant length, and leaves advantages unscaled: no length or difficulty bias",
        scale_rewards="none",
    ),
    "dapo": LossRow(
        "token",
        "clip",
        "token_mean",
        "arXiv:2503.14476",
        "each token weighs the same, and likely tokens may grow further (clip-higher)",
        {"epsilon": 0.2, "epsilon_high": 0.28},
    ),
    "cispo": LossRow(
        "token",
        "cispo",
        "token_mean",
        "arXiv:2506.13585, cap as in arXiv:2510.13786",
        "caps the ratio and detaches it: no token loses its gradient",
    ),
    "sapo": LossRow(
        "token", "sapo", "sequence_mean", "arXiv:2511.20347", "a smooth gate in place of the hard clip"
    ),
    "gspo": LossRow(
        "sequence",
        "clip",
        "sequence_mean",
        "arXiv:2507.18071",
        "one ratio for a whole sequence, the geometric mean of its tokens'",
        {"epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "gspo_token": LossRow(
        "sequence_token",
        "clip",
        "sequence_mean",
        "arXiv:2507.18071",
        "gspo with an advantage for each token",
        {"epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "gmpo": LossRow(
        "sequence",
        "gmpo",
        "sequence_mean",
        "arXiv:2507.20673",
        "geometric mean of ratios that are clipped token by token",
        fixed_level=True,
    ),
    "luspo": LossRow(
        "sequence",
        "clip",
        "sequence_sum",
        "arXiv:2602.05261",
        "gspo times the sequence's length: no length bias",
        {"epsilon": 2e-3, "epsilon_high": 2.5e-3},
        fixed_level=True,
    ),
    "vespo": LossRow(
        "sequence_product",
        "vespo",
        "token_mean",
        "arXiv:2602.10693",
        "a smooth weight of the product of ratios, which falls on both sides of 1",
        fixed_level=True,
    ),
    "dppo_tv": LossRow(
        "token",
        "dppo_tv",
        "token_mean",
        "arXiv:2602.04879",
        "a trust region in probability (total variation), not in the ratio; anchored on the sampler",
    ),
    "dppo_kl": LossRow(
        "token", "dppo_kl", "token_mean", "arXiv:2602.04879", "the same trust region, by binary KL divergence"
    ),
    "spo": LossRow(
        "token",
        "spo",
        "sequence_mean",
        "arXiv:2401.16025",
        "a parabola in the ratio in place of the clip: pulls back",
    ),
    "reinforce": LossRow(
        "token",
        "reinforce",
        "token_mean",
        "Williams 1992; GPG, arXiv:2504.02546",
        "the plain policy gradient",
    ),
    "importance_sampling": LossRow(
        "token", "importance_sampling", "token_mean", "arXiv:1707.06347, eq. 6", "the ratio with no clip"
    ),
    "fipo": LossRow(
        "token",
        "fipo",
        "token_mean",
        "arXiv:2603.19835",
        "weighs a token by what became of the tokens after it",
    ),
    "real": LossRow(
        "token",
        "real",
        "sequence_mean",
        "arXiv:2602.05630",
        "rewards as labels: a classification loss per group",
    ),
    "clip_cov": LossRow(
        "token",
        "clip_cov",
        "token_mean",
        "arXiv:2505.22617",
        "takes the gradient from a few tokens that drive entropy down",
    ),
    "kl_cov": LossRow(
        "token",
        "kl_cov",
        "token_mean",
        "arXiv:2505.22617",
        "a penalty on the few tokens that drive entropy down",
    ),
    "m2po": LossRow(
        "token",
        "m2po",
        "token_mean",
        "arXiv:2510.01161",
        "holds the second moment of the log-ratio, for stale rollouts",
    ),
}

LOSSES: Mapping[str, LossRow] = MappingProxyType(_ROWS)

CORRECTION_OPTIONS = (
    "correction",
    *(f"correction_{name.name}" for name in fields(Correction)),
)

COMMON_OPTIONS = (
    "beta",
    "kl_estimator",
    "kl_gradient",
    "entropy_coef",
    "teacher_coef",
    "teacher_kl_gradient",
    "top_entropy_quantile",
    *CORRECTION_OPTIONS,
    "opsm_threshold",
    "rejected_tokens",
)


def register(name: str, row: LossRow) -> None:
    """Adds a row of your own, from a package. Raises ValueError where the name is taken or a part is unknown."""
    if name in _ROWS:
        raise ValueError(f"loss_type {name!r}: is in the table already")
    _lookup("surrogate", row.surrogate, SURROGATES)
    _lookup("reduction", row.reduction, REDUCTIONS)
    _lookup("ratio_level", row.ratio_level, RATIO_LEVELS)
    _ROWS[name] = row


def make_loss(
    loss_type: str,
    *,
    ratio_level: str | None = None,
    surrogate: str | Callable[..., Tensor] | Surrogate | None = None,
    reduction: str | None = None,
    beta: float | None = None,
    kl_estimator: str | None = None,
    kl_gradient: str | None = None,
    entropy_coef: float | None = None,
    teacher_coef: float | None = None,
    teacher_kl_gradient: str | None = None,
    top_entropy_quantile: float | None = None,
    opsm_threshold: float | None = None,
    rejected_tokens: str | None = None,
    max_completion_length: int | None = None,
    **options: Any,
) -> Loss:
    """Composes a loss from its row of the table, frozen and validated. Raises ValueError where it has no meaning.

    Args:
        loss_type: a key of LOSSES. `ratio_level`, `surrogate` and `reduction` replace a part of its row.
        surrogate: a name of SURROGATES, `"file.py:name"`, `"package.module:name"`, or a function.
        **options: the surrogate's own and those of CORRECTION_OPTIONS, named as on the command line. None means the default,
            here and above.

    Example: `make_loss("dapo", epsilon_high=0.28, beta=0.04)`
    """
    row = _lookup("loss_type", loss_type, LOSSES)
    part = find_surrogate(row.surrogate if surrogate is None else surrogate)
    reduced, level = reduction or row.reduction, ratio_level or row.ratio_level
    _lookup("reduction", reduced, REDUCTIONS)
    _lookup("ratio_level", level, RATIO_LEVELS)
    check_combination(loss_type, part, level, reduced, row.ratio_level if row.fixed_level else None)

    own = row.defaults if part.name == row.surrogate else {}
    corrections = {key: options.pop(key, None) for key in CORRECTION_OPTIONS}
    given = {key: value for key, value in options.items() if value is not None}
    takes = [*part.options, *COMMON_OPTIONS] + ["max_completion_length"] * (reduced == "constant_length")
    if max_completion_length is not None:
        given["max_completion_length"] = max_completion_length
    for key, value in given.items():
        if key not in takes:
            raise ValueError(f"{key} {value}: not used by loss_type {loss_type}; {_nearest(key, takes)}")
    if given.pop("max_completion_length", 1) < 1:
        raise ValueError(f"max_completion_length {max_completion_length}: must be at least 1")
    resolved = {**part.options, **own, **given}
    if "epsilon" in resolved and resolved.get("epsilon_high", 0) is None:
        resolved["epsilon_high"] = resolved["epsilon"]
    check_options(part, resolved)

    loss = Loss(
        name=loss_type,
        ratio_level=level,
        surrogate=part,
        reduction=reduced,
        options=MappingProxyType(resolved),
        beta=0.0 if beta is None else beta,
        kl_estimator=kl_estimator or "k3",
        kl_gradient=kl_gradient or "own",
        entropy_coef=entropy_coef or 0.0,
        teacher_coef=teacher_coef or 0.0,
        teacher_kl_gradient=teacher_kl_gradient or "k2",
        top_entropy_quantile=top_entropy_quantile,
        correction=make_correction(corrections),
        opsm_threshold=opsm_threshold,
        rejected_tokens=rejected_tokens or "keep",
        max_completion_length=max_completion_length,
        scale_rewards=row.scale_rewards,
    )
    check_terms(loss, kl_estimator, kl_gradient)
    for note in notes(loss):
        warnings.warn(note, stacklevel=2)
    return loss


def find_surrogate(surrogate: str | Callable[..., Tensor] | Surrogate) -> Surrogate:
    """Finds a surrogate by name, by `"file.py:name"` or `"package.module:name"`, or wraps a function.

    Nothing is known about a user's function, so nothing is assumed: its samples with A = 0 are not dropped.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if isinstance(surrogate, str) and ":" in surrogate:
        from ..common.imports import load_object

        surrogate = load_object(surrogate, "surrogate")  # pyright: ignore[reportAssignmentType]
    if isinstance(surrogate, str):
        return _lookup("surrogate", surrogate, SURROGATES)
    if not callable(surrogate):
        raise ValueError(
            f"surrogate {surrogate!r}: is not a function f(log_ratio, advantages, logps, *, options)"
        )
    name = getattr(surrogate, "__name__", type(surrogate).__name__)
    known = SURROGATES.get(name)
    return (
        known
        if known is not None and known.fn is surrogate
        else Surrogate(name=name, fn=surrogate, formula=rf"\ell = \mathrm{{{name}}}")
    )


def loss_options(loss_type: str, reduction: str | None = None) -> frozenset[str]:
    """Returns the names of the options of `make_loss(loss_type, ...)`. Raises ValueError for an unknown loss."""
    row = _lookup("loss_type", loss_type, LOSSES)
    length = {"max_completion_length"} if (reduction or row.reduction) == "constant_length" else set()
    return frozenset({*SURROGATES[row.surrogate].options, *COMMON_OPTIONS, *length})


def follows_sampler(loss_type: str, surrogate: str | None = None) -> bool:
    """Checks whether the loss's ratio is to the sampler. Such a loss needs no correction."""
    row = _lookup("loss_type", loss_type, LOSSES)
    return find_surrogate(surrogate or row.surrogate).anchor == "sampler"


def _nearest(key: str, takes: list[str]) -> str:
    near = difflib.get_close_matches(key, takes, n=1, cutoff=0.8)
    return (f"did you mean {near[0]}? " if near else "leave it out; ") + f"it takes {', '.join(takes)}"


def _lookup(flag: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{flag} {name!r}: {hint}there are {', '.join(table)}")
    return table[name]
