"""Rewards: built in by name, a function of the user's as `"file.py:function"`, or a reward model's directory.

A reward function is the field's: `f(completions, **columns) -> list[float | None]`, called once for all
completions of a step, by name, with what its signature asks for. `signatures.py` knows the field's others.
"""

from .registry import BUILT_IN, Reward, describe_rewards, load_rewards
from .scoring import RewardError, reward_metrics, score

__all__ = ["BUILT_IN", "Reward", "RewardError", "describe_rewards", "load_rewards", "reward_metrics", "score"]
