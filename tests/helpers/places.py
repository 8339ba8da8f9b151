"""Where files are: the repository, these helpers, and the functions that runs name by file."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
REWARDS = HELPERS / "reward_functions.py"
OWN_LOSSES = HELPERS / "own_losses.py"
