"""What a surrogate is, and the register of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

COUPLINGS = ("token", "sequence", "group", "step")  # what must be in one place, from least to most
TOKEN_LEVELS = ("token",)
ALL_LEVELS = ("token", "sequence", "sequence_token", "sequence_product")


@dataclass(frozen=True)
class Surrogate:
    """A surrogate and what must be known of it to compose, check and show it.

    `fn(log_ratio, advantages, logps, ..., *, options)` maps [N] tensors to ℓ [N], elementwise; `log_ratio` is clamped, so
    exp is finite. Further arguments before the `*` are fields of the batch or of `statistics`, by their names.
    """

    name: str
    fn: Callable[..., Tensor]
    formula: str = ""  # ℓ in LaTeX (the subset that matplotlib's mathtext draws)
    zero_at_zero_advantage: bool = (
        False  # ℓ = 0 where A = 0: then rows with A = 0 may leave before the forward
    )
    health: Callable[..., dict[str, Tensor]] | None = (
        None  # (ratio, advantages, **options) → name → [N] to average
    )
    check: Callable[..., None] | None = (
        None  # (**options): raises ValueError naming the option and one that works
    )
    ratio_levels: tuple[str, ...] = ALL_LEVELS  # those that mean something
    reductions: tuple[str, ...] | None = None  # likewise; None: all
    anchor: str = "old"  # what the ratio is to: `old`, or `sampler`
    needs_update: str = "token"  # coupling of its own: what `statistics` must see whole
    statistics: Callable[..., dict[str, Tensor]] | None = (
        None  # (tokens, **options) → name → [n], gradient-free
    )
    before_mean: Callable[..., Tensor] | None = (
        None  # (log_ratio, advantages, **options): per token, before a mean
    )
    one_advantage: bool = False  # a sequence must have one advantage
    weighs_itself: bool = False  # ℓ are shares already: the reduction's weight is not applied
    shown: tuple[str, ...] = ()  # statistics whose mean over tokens is a metric, <surrogate>/<name>
    correction_inside: bool = False  # a sampler correction goes into the ratio instead of multiplying ℓ

    @property
    def options(self) -> dict[str, Any]:
        """Options with the defaults of the function's signature, in its order."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments between `logps` and the options."""
        parameters = inspect.signature(self.fn).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[3:]


SURROGATES: dict[str, Surrogate] = {}


def surrogate(**facts: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: enter a function in SURROGATES under its own name, with what is known of it (fields of Surrogate)."""

    def enter(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = facts.pop("name", fn.__name__)
        SURROGATES[name] = Surrogate(name=name, fn=fn, **facts)
        return fn

    return enter


def check_options(part: Surrogate, options: Mapping[str, Any]) -> None:
    """Raise ValueError where an option has no value, is not a number, or is one the surrogate can't work with."""
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
    """Raise ValueError unless `value` is finite and ≥ `low`."""
    if not low <= value < float("inf"):
        raise ValueError(f"{name} {value}: must be at least {low:g}; {hint}")


def above(name: str, value: float, low: float, hint: str) -> None:
    """Raise ValueError unless `value` is finite and > `low`."""
    if not low < value < float("inf"):
        raise ValueError(f"{name} {value}: must be above {low:g}; {hint}")
