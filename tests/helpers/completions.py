"""Groups of completions as text, and reward functions for them."""

from __future__ import annotations

import math

import torch

from grpokit.config.options import ModelConfig
from grpokit.rewards import Reward, load_rewards, score
from grpokit.types import Prompt, Rollout, RolloutGroup

NAN = math.nan


def rollout(text: str, ids: list[int] | None = None) -> Rollout:
    ids = ids or [ord(letter) for letter in text]
    n = len(ids)
    return Rollout(
        torch.tensor(ids, dtype=torch.int64),
        torch.zeros(n),
        torch.zeros(n),
        text,
        "stop",
        0,
        torch.ones(n).bool(),
    )


def group(*texts: str, content="q", line: int = 1, **columns) -> RolloutGroup:
    """A group with these completions."""
    return RolloutGroup(Prompt(0, (1,), content, columns, f"t.jsonl:{line}"), tuple(map(rollout, texts)))


def scored(*rewards: list[float]) -> list[RolloutGroup]:
    """Groups whose completions got these rewards from one function."""
    position = iter(range(1000))
    flat = [value for values in rewards for value in values]
    groups = [group(*["x"] * len(values), line=n) for n, values in enumerate(rewards, 1)]
    return score(groups, [Reward("f", lambda completions: [flat[next(position)] for _ in completions])])


def load(*specs: str, columns=("answer",), **options):
    """`load_rewards` with options that the test doesn't care about."""
    functions = options.pop("functions", None)
    settings = {"format_pattern": "x", "max_completion_length": 10} | options
    settings["reward_weights"] = tuple(settings.pop("weights", ()))
    config = ModelConfig(reward_funcs=tuple(map(str, specs)), **settings)
    return load_rewards(config, set(columns), functions)


def line_of(fn) -> str:
    return f"{fn.__code__.co_filename}:{fn.__code__.co_firstlineno}"


TWO = [
    group("a", "b", content="p1", answer="1", level=5),
    group("c", content="p2", line=2, answer="2", level=None),
]


def call(fn, groups=TWO):
    """Call `fn` on `groups`, as scoring does."""
    score(groups, [Reward("f", fn)])


CHAT = [{"role": "user", "content": "q"}]


def two(**columns):
    """A chat with two completions and a text with one."""
    return [group("a", "b", content=CHAT, **columns), group("c", line=2, **columns)]


def flat(groups) -> list:
    return [value for done in groups for value in done.reward.tolist()]
