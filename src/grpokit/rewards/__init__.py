"""Rewards: built in by name, a function of the user's as `"file.py:function"`, or a reward model's directory.

A reward function is the field's: `f(completions, **columns) -> list[float | None]`, called once for all
completions of a step, by name, with what its signature asks for. `signatures.py` knows the field's others.
"""

from grpokit.rewards.registry import BUILT_IN, Reward, load_rewards, recognised
from grpokit.rewards.scoring import RewardError, reward_metrics, score

__all__ = ["BUILT_IN", "Reward", "RewardError", "load_rewards", "recognised", "reward_metrics", "score"]
