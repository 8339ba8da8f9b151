"""Rewards: built in by name, your own function as `"file.py:function"`, or the directory of a reward model.

A reward function has TRL's signature, `f(completions, **columns) -> list[float | None]`. It is called once per step for
all completions, by keyword, with the arguments that its signature asks for. `signatures.py` adapts other signatures.
"""

from .functions import RewardError
from .registry import BUILT_IN, Reward, describe_rewards, load_rewards, pass_note
from .reporting import Report, TrainerState
from .scoring import reward_metrics, score

__all__ = [
    "BUILT_IN",
    "Report",
    "Reward",
    "RewardError",
    "TrainerState",
    "describe_rewards",
    "load_rewards",
    "pass_note",
    "reward_metrics",
    "score",
]
