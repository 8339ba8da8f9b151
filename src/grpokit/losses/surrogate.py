"""`Surrogate`: what the library knows about a surrogate, and the register of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

COUPLINGS = ("token", "sequence", "group", "step")  # what a slice must hold whole, from least to most
TOKEN_LEVELS = ("token",)
ALL_LEVELS = ("token", "sequence", "sequence_token", "sequence_product")


@dataclass(frozen=True)
class Surrogate:
    """A surrogate and the facts needed to compose, check and show it.

    `fn(log_ratio, advantages, logps, ..., *, options)` maps [N] tensors to ℓ [N], elementwise. `log_ratio` is clamped, so its
    exp is finite. Further arguments before the `*` are fields of the batch or of `statistics`, looked up by name.

    Example:
        >>> from grpokit.losses import find_surrogate
        >>> find_surrogate("sapo").options
        {'tau_pos': 1.0, 'tau_neg': 1.05, 'sapo_gain': 'paper'}
    """

    name: str
    fn: Callable[..., Tensor]
    formula: str = ""  # ℓ in LaTeX (the subset that matplotlib's mathtext draws)
    # True where ℓ = 0 at A = 0, so that samples with A = 0 need no forward.
    zero_at_zero_advantage: bool = False
    # (ratio, advantages, **options) → name → [N] to average.
    health: Callable[..., dict[str, Tensor]] | None = None
    # (**options): raises ValueError naming the option and a value that works.
    check: Callable[..., None] | None = None
    ratio_levels: tuple[str, ...] = ALL_LEVELS  # the ratio levels that mean something
    reductions: tuple[str, ...] | None = None  # the reductions that mean something; None: all
    anchor: str = "old"  # the denominator of the ratio: `old` or `sampler`
    needs_update: str = "token"  # what `statistics` must see whole, one of COUPLINGS
    # (tokens, **options) → name → [n], without gradient.
    statistics: Callable[..., dict[str, Tensor]] | None = None
    # (log_ratio, advantages, **options) → [N], applied to tokens before the sequence's mean.
    before_mean: Callable[..., Tensor] | None = None
    one_advantage: bool = False  # a sequence must have one advantage
    weighs_itself: bool = False  # ℓ is a share already: the reduction's weight is not applied
    shown: tuple[str, ...] = ()  # statistics whose token mean is the metric <surrogate>/<name>
    correction_inside: bool = False  # a sampler correction enters the ratio instead of multiplying ℓ

    @property
    def options(self) -> dict[str, Any]:
        """Returns the options with their defaults, in the order of the function's signature."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Returns the names of the arguments between `logps` and the options."""
        parameters = inspect.signature(self.fn).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[3:]


SURROGATES: dict[str, Surrogate] = {}


def surrogate(**facts: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    r"""Enters a function in SURROGATES under its own name. `facts` are fields of Surrogate.

    Example:
        >>> @surrogate(formula=r"\ell = -A\,\rho", zero_at_zero_advantage=True, name="my_surrogate")
        ... def mine(log_ratio, advantages, logps):
        ...     return -log_ratio.exp() * advantages
        >>> SURROGATES.pop("my_surrogate").zero_at_zero_advantage
        True
    """

    def enter(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = facts.pop("name", fn.__name__)
        SURROGATES[name] = Surrogate(name=name, fn=fn, **facts)
        return fn

    return enter


def check_options(part: Surrogate, options: Mapping[str, Any]) -> None:
    """Checks that every option has a value, is a number where it must be, and has a value the surrogate can work with.

    Raises:
        ValueError: an option does not. The message names it.
    """
    for name, value in options.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name} is missing: surrogate {part.name} needs it")
        numeric = (
            isinstance(part.options[name], int | float | None)
            or part.options[name] is inspect.Parameter.empty
        )
        if value is not None and numeric and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} {value!r}: must be a number")
    if part.check is not None:
        part.check(**options)


def at_least(name: str, value: float, low: float, hint: str) -> None:
    """Checks that `value` is finite and ≥ `low`; else raises ValueError with `hint`.

    Args:
        name: the option, for the message.
        value: its value.
        low: the bound.
        hint: what would work.
    """
    if not low <= value < float("inf"):
        raise ValueError(f"{name} {value}: must be at least {low:g}; {hint}")


def above(name: str, value: float, low: float, hint: str) -> None:
    """Checks that `value` is finite and > `low`; else raises ValueError with `hint`.

    Args:
        name: the option, for the message.
        value: its value.
        low: the bound.
        hint: what would work.
    """
    if not low < value < float("inf"):
        raise ValueError(f"{name} {value}: must be above {low:g}; {hint}")
