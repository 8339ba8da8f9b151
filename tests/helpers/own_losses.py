"""Surrogates for the tests, as a user would write them."""

from __future__ import annotations

import os

from grpokit.losses import surrogate

_calls = 0


@surrogate(formula=r"\ell = -\rho\,A", zero_at_zero_advantage=True)
def nan_on_rank_1(log_ratio, advantages, logps):
    """A policy gradient that is no number on the second rank, from its sixth slice on."""
    global _calls
    _calls += 1
    broken = float("nan") if _calls > 5 and os.environ.get("RANK") == "1" else 1.0
    return -log_ratio.exp() * advantages * broken
