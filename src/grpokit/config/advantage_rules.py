"""Checks of the options for advantages."""

from __future__ import annotations

import math

from .rules import Rule
from .teacher_options import teaches_alone

# The estimators of batch/estimators.py, by what they compare a completion with.
BY_GROUP = (*("group", "rloo", "reinforce_plus_plus", "opo", "gdpo", "maxrl", "gpg", "loo_std", "pass_k"),)
WITHOUT_GROUP = ("remax", "reinforce_plus_plus_global")
# Those that divide by a standard deviation.
SCALED = (*("group", "reinforce_plus_plus", "reinforce_plus_plus_global", "gdpo", "loo_std", "pass_k"),)

ADVANTAGE_RULES = [
    Rule(
        "advantage_estimator",
        lambda c: ":" in c.advantage_estimator or c.advantage_estimator in BY_GROUP + WITHOUT_GROUP,
        f"is not one of {', '.join(BY_GROUP + WITHOUT_GROUP)}; TRL's grpo is group, verl's grpo_passk is pass_k; your own is "
        "file.py:function",
    ),
    Rule(
        "num_generations",
        lambda c: c.num_generations >= 2 or c.advantage_estimator not in BY_GROUP or teaches_alone(c),
        "the estimator `{c.advantage_estimator}` compares completions of one prompt, so every advantage "
        "would be 0; use 2 or more (8 is usual)",
    ),
    Rule(
        "scale_rewards",
        lambda c: c.scale_rewards is None or c.advantage_estimator == "group",
        "is not used by --advantage_estimator {c.advantage_estimator}; leave it out or use group",
    ),
    Rule(
        "advantage_epsilon",
        lambda c: 0 <= c.advantage_epsilon < math.inf,
        "must be finite and at least 0; 1e-4 is usual",
    ),
    Rule(
        "advantage_epsilon",
        lambda c: c.advantage_epsilon == 1e-4 or c.advantage_estimator in SCALED,
        "does nothing with --advantage_estimator {c.advantage_estimator}, which divides by no standard deviation; "
        "leave it out",
    ),
    Rule(
        "advantage_epsilon",
        lambda c: c.advantage_epsilon == 1e-4 or c.scale_rewards != "none",
        "does nothing with --scale_rewards none; leave one of them out",
    ),
    Rule(
        "turn_discount",
        lambda c: c.turn_discount is None or 0 <= c.turn_discount <= 1,
        "must be from 0 to 1; 1 adds up all rewards from a turn on",
    ),
    Rule(
        "turn_discount",
        lambda c: c.turn_discount is None or c.advantage_estimator == "group",
        "compares turns as --advantage_estimator group does; leave out {c.advantage_estimator}, or this",
    ),
    Rule(
        "turn_discount",
        lambda c: c.turn_discount is None or c.scale_rewards != "batch",
        "compares turns within a group; use --scale_rewards group or none",
    ),
    Rule(
        "kl_in_reward",
        lambda c: not c.kl_in_reward or c.advantage_estimator != "gdpo",
        "gdpo normalises each reward function separately, and the KL is not a reward function; use --advantage_estimator group",
    ),
    Rule(
        "kl_in_reward",
        lambda c: not c.kl_in_reward or c.advantage_estimator != "remax",
        "remax compares with a greedy completion, whose KL is not computed; use --beta alone, or --advantage_estimator group",
    ),
    Rule(
        "kl_in_reward",
        lambda c: not c.kl_in_reward or c.advantage_estimator != "maxrl",
        "maxrl needs rewards of at least 0, and the KL takes them below; use --beta alone, or --advantage_estimator group",
    ),
    Rule(
        "max_resample_times",
        lambda c: (
            c.max_resample_times == 0
            or c.group_filter != ""
            or c.advantage_estimator != "reinforce_plus_plus_global"
        ),
        "does nothing with --advantage_estimator reinforce_plus_plus_global, which learns from groups of equal rewards "
        "too; leave it out",
    ),
]
