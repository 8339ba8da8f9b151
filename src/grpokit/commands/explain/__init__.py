"""`grpokit losses`: describes every loss of the table, in a terminal and in pictures. All facts come from the code itself.

Example:
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
    """Draws losses to `output`: .png, .svg, or .html for one page. Returns the files written.

    Args:
        names: names of LOSSES or composed losses; none: all of them.
        output: the file to write.

    Raises:
        ValueError: an unknown name, or another suffix.
    """
    from .plots import plot_losses as draw  # imported late, because matplotlib is slow to import

    return draw(names, output)
