"""The horizontal axes of the plots: ρ over a wide range, ρ near 1 for losses that clip there, or π for the sampler's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses import Loss

POINTS = 401
NARROW = 0.02  # a clip range below this is for sequence ratios; on the wide axis it would be a line


@dataclass(frozen=True)
class Axis:
    """A horizontal axis, and the losses that can be drawn on it together."""

    key: str  # wide, near or sampler
    losses: tuple[Loss, ...]

    @property
    def span(self) -> float:
        """Half the width of the `near` axis: three times the widest clip range."""
        return 3 * max(_clip_width(loss) for loss in self.losses)

    @property
    def x(self) -> Tensor:
        """The points [n] float64: ρ or π."""
        line = torch.linspace(0, 1, POINTS, dtype=torch.float64)
        if self.key == "wide":
            return 0.05 * 400**line  # 0.05 to 20, with 1 in the middle
        return 0.002 + 0.996 * line if self.key == "sampler" else 1 + self.span * (2 * line - 1)

    @property
    def label(self) -> str:
        """The quantity in mathtext, as the losses' ratio level defines it."""
        if self.key == "sampler":
            return r"$\pi$"
        statistics = {loss.level.statistic for loss in self.losses}
        names = {
            None: r"$\rho=\pi/\pi_{\mathrm{old}}$",
            "mean": r"$\rho=\left(\prod_t\,\rho_t\right)^{1/T}$",
            "sum": r"$W=\prod_t\,\rho_t$",
        }
        return names[statistics.pop()] if len(statistics) == 1 else r"$\rho$"


def axes_of(losses: list[Loss]) -> list[Axis]:
    """Assigns `losses` to the axes they belong on, in the order of their first loss."""
    dealt: dict[str, list[Loss]] = {}
    for loss in losses:
        dealt.setdefault(_key(loss), []).append(loss)
    return [Axis(key, tuple(members)) for key, members in dealt.items()]


def _key(loss: Loss) -> str:
    if loss.surrogate.anchor == "sampler":
        return "sampler"
    return "near" if 0 < _clip_width(loss) < NARROW else "wide"


def _clip_width(loss: Loss) -> float:
    given = (loss.options.get("epsilon"), loss.options.get("epsilon_high"))
    return max((value for value in given if value is not None), default=0.0)
