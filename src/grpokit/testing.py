"""Checks a loss of your own: `check_loss(name)`. The code is in `grpokit.losses.testing`."""

from .losses.testing import LossCheck, check_loss

__all__ = ["LossCheck", "check_loss"]
