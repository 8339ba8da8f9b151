"""Ends a run whose evaluations get no better: `--early_stop METRIC:PATIENCE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.early_stop import parse_early_stop


def has_stalled(setting: str, evaluations: Sequence[Mapping[str, Any]]) -> bool:
    """Tells whether the figure has not improved in the last PATIENCE evaluations. Depends on the run's history alone.

    Args:
        setting: METRIC:PATIENCE, or "": never.
        evaluations: the run's evaluations, in order.

    Raises:
        ValueError: the evaluations have no such figure.

    Example:
        >>> rows = [{"eval/reward": value} for value in (0.1, 0.4, 0.4, 0.3)]
        >>> has_stalled("eval/reward:2", rows), has_stalled("eval/reward:3", rows)
        (True, False)
    """
    if not setting:
        return False
    metric, patience = parse_early_stop(setting)
    values = [row[metric] for row in evaluations if metric in row]
    if evaluations and not values:
        known = sorted({name for row in evaluations for name in row if name.startswith("eval/")})
        raise ValueError(
            f"--early_stop {setting}: the evaluations have no figure {metric}; they have {', '.join(known)}"
        )
    return len(values) > patience and max(values[:-patience]) >= max(values[-patience:])
