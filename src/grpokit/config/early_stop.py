"""The form of `--early_stop`."""

from __future__ import annotations


def parse_early_stop(setting: str) -> tuple[str, int]:
    """Returns the metric and the patience of METRIC:PATIENCE.

    Raises:
        ValueError: it has another form.

    Example:
        >>> parse_early_stop("eval/pass@1:3"), parse_early_stop("reward:2")
        (('eval/pass@1', 3), ('eval/reward', 2))
    """
    metric, _, patience = setting.rpartition(":")
    if not metric or not patience.isdecimal() or int(patience) < 1:
        raise ValueError(
            f"--early_stop {setting}: expected METRIC:PATIENCE, such as eval/reward:3 (end after three evaluations "
            "that are no better)"
        )
    return metric if metric.startswith("eval/") else f"eval/{metric}", int(patience)


def is_early_stop(setting: str) -> bool:
    """Tells whether a setting has the form METRIC:PATIENCE."""
    try:
        parse_early_stop(setting)
    except ValueError:
        return False
    return True
