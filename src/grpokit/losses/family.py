"""THE TABLE: loss_type → row (ratio level, surrogate, reduction, defaults, source). `make_loss` composes one.

A loss of the family is a composition, and this is the only file that knows any by name. To add one: a function
in `surrogates.py` (unless it shares another's), and a row here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .ratio import RATIO_LEVELS
from .reductions import REDUCTION_FORMULAS, REDUCTIONS
from .surrogates import SURROGATES, Surrogate, check_options


@dataclass(frozen=True)
class LossRow:
    """One row of the table: the parts of a loss, its paper's defaults, and where it comes from."""

    ratio_level: str  # key of RATIO_LEVELS
    surrogate: str  # key of SURROGATES
    reduction: str  # key of REDUCTIONS
    defaults: Mapping[str, Any]  # of the surrogate's options; an option left out is None
    paper: str
    summary: str  # one line: what it does that others don't
    scale_rewards: str = "group"  # default scaling of `group` advantages


_CLIP = {"epsilon": 0.2}  # epsilon_high: epsilon, unless the row has its own

LOSSES: Mapping[str, LossRow] = MappingProxyType(
    {
        "grpo": LossRow(
            "token",
            "clip",
            "sequence_mean",
            _CLIP,
            "arXiv:2402.03300",
            "each completion weighs the same, long or short",
        ),
        "bnpo": LossRow(
            "token",
            "clip",
            "rank_token_mean",
            _CLIP,
            "the loss of this name in TRL and ms-swift (not arXiv:2506.02864)",
            "token mean of each rank: depends on the rank layout by definition",
        ),
        "dr_grpo": LossRow(
            "token",
            "clip",
            "constant_length",
            _CLIP,
            "arXiv:2503.20783",
            "divides by a constant length, and leaves advantages unscaled: no length or difficulty bias",
            scale_rewards="none",
        ),
        "dapo": LossRow(
            "token",
            "clip",
            "token_mean",
            {"epsilon": 0.2, "epsilon_high": 0.28},
            "arXiv:2503.14476",
            "each token weighs the same, and likely tokens may grow further (clip-higher)",
        ),
        "cispo": LossRow(
            "token",
            "cispo",
            "token_mean",
            {"epsilon_high": 5.0, "epsilon_low_cap": 0.0},
            "arXiv:2506.13585, cap as in arXiv:2510.13786",
            "caps the ratio and detaches it: no token loses its gradient",
        ),
        "sapo": LossRow(
            "token",
            "sapo",
            "sequence_mean",
            {"tau_pos": 1.0, "tau_neg": 1.05, "sapo_gain": "paper"},
            "arXiv:2511.20347",
            "a smooth gate in place of the hard clip",
        ),
    }
)


@dataclass(frozen=True)
class Loss:
    """A validated composition, made by `make_loss`: ratio level × surrogate × reduction, with its options."""

    name: str
    ratio_level: str
    surrogate: Surrogate
    surrogate_name: str
    reduction: str
    options: Mapping[str, Any] = field(hash=False)  # of the surrogate, all resolved
    beta: float = 0.0
    max_completion_length: int | None = None
    scale_rewards: str = "group"

    @property
    def coupling(self) -> str:
        """`token`: any subset of an update's tokens is a slice, and shares add up."""
        return "token"

    @property
    def drops_dead_rows(self) -> bool:
        """Whether a sequence with A = 0 on all its tokens moves nothing, so that it needs no forward."""
        return self.surrogate.zero_at_zero_advantage and not self.beta

    @property
    def formula(self) -> str:
        """The loss in LaTeX, a line for each part: the sum, ℓ and w."""
        kl = r" + \beta\,k_3" if self.beta else ""
        return "\n".join(
            [
                r"L = \sum_{i,t} w_i\,\left(\ell_{i,t}" + kl + r"\right)"
                if kl
                else r"L = \sum_{i,t} w_i\,\ell_{i,t}",
                self.surrogate.formula,
                REDUCTION_FORMULAS[self.reduction],
            ]
        )

    def __str__(self) -> str:
        shown = {**{k: v for k, v in self.options.items() if v is not None}, "beta": self.beta}
        options = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in shown.items()
        )
        return (
            f"{self.name} = {self.ratio_level} ratio × {self.surrogate_name} × {self.reduction} ({options})"
        )


def make_loss(
    loss_type: str,
    *,
    ratio_level: str | None = None,
    surrogate: str | None = None,
    reduction: str | None = None,
    beta: float | None = None,
    max_completion_length: int | None = None,
    **options: Any,
) -> Loss:
    """A loss of the table, frozen and validated; `ratio_level`, `surrogate` and `reduction` replace a part of its row.

    The options are LOSSES.md's flags under the command line's names (`epsilon`, `epsilon_high`, `delta`, `tau_pos`,
    `beta`, ...); None means "the row's default". Raises ValueError for an unknown loss or part (naming the
    nearest), for an option that this loss does not use, and for a value that cannot work.

    Example: `make_loss("dapo", epsilon=0.2, epsilon_high=0.28, beta=0.04)`
    """
    row = _lookup("loss_type", loss_type, LOSSES)
    name = surrogate or row.surrogate
    part = _lookup("surrogate", name, SURROGATES)
    reduced, level = reduction or row.reduction, ratio_level or row.ratio_level
    _lookup("reduction", reduced, REDUCTIONS)
    _lookup("ratio_level", level, RATIO_LEVELS)

    given = {key: value for key, value in options.items() if value is not None}
    takes_length = reduced == "constant_length"
    for key, value in given.items():
        if key not in part.options:
            _refuse(loss_type, key, value, part, takes_length)
    if max_completion_length is not None and not takes_length:
        _refuse(loss_type, "max_completion_length", max_completion_length, part, takes_length)
    if max_completion_length is not None and max_completion_length < 1:
        raise ValueError(f"max_completion_length {max_completion_length}: must be at least 1")
    beta = 0.0 if beta is None else beta
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta {beta}: must be 0 (no KL penalty) or above; 0.04 is usual")

    resolved = {**dict.fromkeys(part.options), **_defaults(name, row), **given}
    if "epsilon" in resolved and resolved["epsilon_high"] is None:
        resolved["epsilon_high"] = resolved["epsilon"]
    check_options(part, resolved)
    return Loss(
        loss_type,
        level,
        part,
        name,
        reduced,
        MappingProxyType(resolved),
        beta,
        max_completion_length,
        row.scale_rewards,
    )


def loss_options(loss_type: str) -> frozenset[str]:
    """Names of the options that `make_loss(loss_type, ...)` takes. Raises ValueError for an unknown loss."""
    row = _lookup("loss_type", loss_type, LOSSES)
    length = {"max_completion_length"} if row.reduction == "constant_length" else set()
    return frozenset({*SURROGATES[row.surrogate].options, "beta", *length})


def _defaults(surrogate: str, row: LossRow) -> Mapping[str, Any]:
    """The row's defaults, or where its surrogate was replaced, those of the first row that has the new one."""
    if surrogate == row.surrogate:
        return row.defaults
    return next((other.defaults for other in LOSSES.values() if other.surrogate == surrogate), {})


def _lookup(flag: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{flag} {name!r}: {hint}there are {', '.join(table)}")
    return table[name]


def _refuse(loss_type: str, key: str, value: Any, part: Surrogate, takes_length: bool) -> None:
    takes = [*part.options, "beta"] + ["max_completion_length"] * takes_length
    near = difflib.get_close_matches(key, takes, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}? " if near else "leave it out; "
    raise ValueError(f"{key} {value}: not used by loss_type {loss_type}; {hint}it takes {', '.join(takes)}")
