"""Turn returns: the tokens of each turn are judged by the rewards from there on (`--turn_discount`).

A turn ends where an episode's turn ends, and at each token to which a reward function gave a reward of its own. A
completion with neither has one turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Rollout, RolloutGroup
from .estimators import ESTIMATORS, Scored, Settings, within_group


@dataclass(frozen=True)
class Turns:
    """A completion's K turns. Example: `Turns(ends=[2, 5], returns=torch.tensor([1.5, 1.0]).double())`"""

    ends: list[int]  # the last token + 1 of each turn; tokens behind the last belong to it
    returns: Tensor  # [K] float64, Σ_{j≥k} γ^{j−k} r_j

    def at(self, turn: int) -> float:
        """Returns the return of a turn. A completion that ended earlier counts with its last one."""
        return float(self.returns[min(turn, len(self.ends) - 1)])


def turns_of(rollout: Rollout, token_rewards: Tensor | None, total: float, discount: float) -> Turns:
    """Finds a completion's turns and their returns.

    Args:
        rollout: the completion.
        token_rewards: [T] rewards at the tokens that end a step, by reward functions; NaN elsewhere; None without any.
        total: R, the completion's whole reward. The last turn's reward is R minus the rewards of the earlier turns.
        discount: γ.

    Returns:
        The turns.
    """
    rewards = torch.zeros(max(1, len(rollout.completion_ids)), dtype=torch.float64)
    ends: set[int] = set()
    if token_rewards is not None:
        rewards[: len(token_rewards)] += token_rewards.nan_to_num()
        ends = {index + 1 for index in torch.nonzero(~token_rewards.isnan()).flatten().tolist()}
    if rollout.episode is not None:
        ends |= {end for begin, end in rollout.episode.turns if end > begin}
        for (_, end), reward in zip(rollout.episode.turns, rollout.episode.turn_rewards or (), strict=False):
            rewards[max(end - 1, 0)] += reward
    ordered = sorted(ends) or [len(rewards)]
    firsts = [0, *ordered[:-1]]
    own = [float(rewards[first:end].sum()) for first, end in zip(firsts, ordered, strict=True)]
    own[-1] = total - sum(own[:-1])
    returns = [own[-1]]
    for reward in reversed(own[:-1]):
        returns.append(reward + discount * returns[-1])
    return Turns(ordered, torch.tensor(returns[::-1], dtype=torch.float64))


def turn_advantages(group: RolloutGroup, valid: Tensor, discount: float, how: Settings) -> tuple[Tensor, ...]:
    """Gives every token of turn k of completion i the advantage (R_{i,k} − b_k) / (s_k + ε).

    R_{i,k} is the turn's return; b_k and s_k are mean and unbiased std of R_{·,k} over the group, in which a completion that
    ended earlier counts with the return of its last turn. Where all returns of a turn are equal, the advantage is exactly 0.
    With γ = 1 and rewards in the last turns alone, advantages equal those of the estimator `group`.

    Args:
        group: a scored group.
        valid: [G] bool, the completions that have a reward.
        discount: γ.
        how: ε, and whether advantages are divided by the standard deviation.

    Returns:
        G × [T] float64; 0 where there is no reward.
    """
    assert group.reward is not None
    of_tokens = group.token_rewards or [None] * len(group.rollouts)
    found = [torch.zeros(len(rollout.completion_ids), dtype=torch.float64) for rollout in group.rollouts]
    known = [i for i, ok in enumerate(valid.tolist()) if ok]
    turns = {i: turns_of(group.rollouts[i], of_tokens[i], float(group.reward[i]), discount) for i in known}
    for turn in range(max((len(each.ends) for each in turns.values()), default=0)):
        returns = torch.tensor([turns[i].at(turn) for i in known], dtype=torch.float64)
        for i, advantage in zip(known, _compared(returns, how), strict=True):
            ends = turns[i].ends
            if turn < len(ends):
                first = ends[turn - 1] if turn else 0
                last = len(found[i]) if turn == len(ends) - 1 else ends[turn]
                found[i][first:last] = advantage
    return tuple(found)


def _compared(returns: Tensor, how: Settings) -> Sequence[float]:
    """The estimator `group` on the returns [n] of one turn."""
    scored = Scored(returns, returns[:, None], torch.ones_like(returns), None, "")
    row = ESTIMATORS["group"]
    advantages = [within_group(row, scored, how)]
    return (advantages if row.over is None else row.over(advantages, [scored], how))[0].tolist()
