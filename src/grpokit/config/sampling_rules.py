"""The rules of the sampling options, for training and, with the prefix `eval_`, for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .rules import Rule
from .sampled import for_evaluation


def sampling_rules(prefix: str = "") -> list[Rule]:
    """Makes the rules of `--{prefix}temperature`, `--{prefix}top_p`, ... In evaluation's options, None means training's value."""

    def rule(name: str, holds: Callable[[Any], bool], expected: str, shown: str | None = None) -> Rule:
        flag = prefix + name
        return Rule(flag, lambda c: getattr(c, flag) is None or holds(getattr(c, flag)), expected, shown)

    def lengths_fit(config: Any) -> bool:
        own = for_evaluation(config) if prefix else config
        return 0 <= own.min_completion_length <= own.max_completion_length

    most = (
        "--max_completion_length {c.max_completion_length}"
        if not prefix
        else "the longest completion of an evaluation"
    )
    return [
        rule("max_completion_length", lambda n: n >= 1, "must be at least 1"),
        Rule(f"{prefix}min_completion_length", lengths_fit, f"must be 0 or more, and at most {most}"),
        rule("temperature", lambda t: 0 < t < math.inf, "must be above 0 (evaluation adds greedy)"),
        rule(
            "top_p",
            lambda p: 0 < p <= 1,
            "must be above 0 and at most 1; 0.95 is usual, and 1 leaves no token out",
        ),
        rule("top_k", lambda k: k >= 0, "must be 0 (all tokens) or more; 20 is usual"),
        rule("min_p", lambda p: 0 <= p <= 1, "must be between 0 (all tokens) and 1; 0.05 is usual"),
        rule(
            "repetition_penalty", lambda r: 0 < r < math.inf, "must be above 0; 1 is none, and 1.05 is usual"
        ),
        rule("stop", lambda s: "" not in s, "is in every completion; name a string, or leave it out", "''"),
    ]
