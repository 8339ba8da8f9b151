"""The rules of the rewards' options."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from .judge_options import OPENAI_KEY
from .rules import Rule, above_0, at_least
from .unused import has_reward

ROUTES = "expected a column and value=name,name for each value, such as data_source gsm8k=accuracy code=passes,format"


_judges = has_reward("judge")

REWARD_RULES = [
    Rule(
        "reward_funcs",
        lambda c: len(c.reward_funcs) > 0 or len(c.environment) > 0 or len(getattr(c, "teacher", ())) > 0,
        "at least one is required, unless a --teacher teaches alone; see --help",
        "(missing)",
    ),
    Rule(
        "reward_weights",
        lambda c: len(c.reward_weights) in (0, len(c.reward_funcs)),
        "needs one weight for each of the reward functions: {c.reward_funcs}",
    ),
    *(
        Rule(name, lambda c, name=name: math.isfinite(getattr(c, name)), "must be a finite number")
        for name in (
            "cosine_min_len_value_wrong",
            "cosine_max_len_value_wrong",
            "cosine_min_len_value_correct",
            "cosine_max_len_value_correct",
        )
    ),
    Rule("cosine_max_len", lambda c: c.cosine_max_len is None or c.cosine_max_len >= 1, "must be at least 1"),
    Rule(
        "judge_url",
        lambda c: not _judges(c) or c.judge_url != "",
        "--reward_funcs judge needs an endpoint, such as http://127.0.0.1:8000/v1",
        "(missing)",
    ),
    Rule(
        "judge_rubric",
        lambda c: c.judge_rubric == "" or Path(c.judge_rubric).is_file(),
        "no such file; name a text file that has {{completion}}",
    ),
    Rule(
        "judge_cache",
        lambda c: not Path(c.judge_cache or ".").exists() or Path(c.judge_cache or ".").is_dir(),
        "is a file; name a directory",
    ),
    Rule(
        "judge_api_key_env",
        lambda c: c.judge_api_key_env == OPENAI_KEY or bool(os.environ.get(c.judge_api_key_env)),
        "there is no such environment variable, or it is empty; export it",
    ),
    *at_least(1, "judge_max_tokens judge_concurrency"),
    *at_least(0, "judge_retries reward_timeout"),
    *above_0("judge_timeout"),
]


def parse_routes(options: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """Reads --reward_routes: the column, and value → names of functions.

    Raises:
        ValueError: it has another form.

    Example:
        >>> parse_routes(["data_source", "openai/gsm8k=accuracy", "code=passes,format"])
        ('data_source', {'openai/gsm8k': ['accuracy'], 'code': ['passes', 'format']})
    """
    shown = f"--reward_routes {' '.join(options)}"
    column, *routes = options
    if not column or "=" in column or not routes:
        raise ValueError(f"{shown}: {ROUTES}")
    found: dict[str, list[str]] = {}
    for route in routes:
        value, equals, names = route.rpartition("=")
        if not equals or not all(names.split(",")):
            raise ValueError(f"{shown}: {route!r}: {ROUTES}")
        if value in found:
            raise ValueError(f"{shown}: {value!r} is there twice; join its functions: {value}=name,name")
        found[value] = names.split(",")
    return column, found
