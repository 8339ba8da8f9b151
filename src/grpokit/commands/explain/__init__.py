"""`grpokit losses`: what every loss of the table is, in a terminal and in pictures, asked of the code itself.

list_losses()                                      # the whole table
show_loss("gspo")                                  # formula, parts, metrics, traps
plot_losses(["dapo", "cispo"], Path("two.svg"))    # ℓ and the weight of the gradient; token weights
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .show import list_losses, show_loss

if TYPE_CHECKING:
    from ...losses import Loss

__all__ = ["list_losses", "plot_losses", "show_loss"]


def plot_losses(names: Sequence[str | Loss], output: Path) -> list[Path]:
    """Draw losses, by name or composed ones, to `output`: .png, .svg, or .html for one page. → files written.

    No name means all of them. Raises ValueError for an unknown name and for another suffix.
    """
    from .plots import plot_losses as draw  # late: matplotlib takes its time

    return draw(names, output)
