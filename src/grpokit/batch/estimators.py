"""The table of advantage estimators. All arithmetic is in float64; a step is all groups that were sampled together.

A row has two parts: what a completion's advantage is within its group, and what is then done over the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SCALINGS = ("group", "batch", "none")
EPSILON = 1e-4  # added to a standard deviation before dividing by it; TRL's number, so that values carry over


@dataclass(frozen=True)
class Scored:
    """What an estimator reads of a group: its n completions that have a reward.

    Example:
        >>> rewards = torch.tensor([1.0, 0.0]).double()
        >>> Scored(rewards, rewards[:, None], torch.tensor([5.0, 7.0]).double(), None, "a.jsonl:1").deviation
        tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """

    rewards: Tensor  # [n] weighted sums of the reward functions
    by_function: Tensor  # [n, F]; NaN where a function does not apply
    lengths: Tensor  # [n] trainable tokens
    greedy: float | None  # the reward of the prompt's greedy completion, where the estimator needs one
    source: str  # the prompt's row, for messages

    @property
    def deviation(self) -> Tensor:
        """Returns R − mean [n]."""
        return _centred(self.rewards, self.rewards.mean())

    @property
    def mean_of_others(self) -> Tensor:
        """Returns for each completion the mean reward of the others [n]; needs n ≥ 2."""
        return (self.rewards.sum() - self.rewards) / (len(self.rewards) - 1)


@dataclass(frozen=True)
class Settings:
    """The options of the estimators. Example: `Settings(epsilon=1e-6)`"""

    scale_rewards: str = "group"  # one of SCALINGS; for `group`
    weights: Sequence[float] | None = None  # [F] of the reward functions; for `gdpo`
    epsilon: float = EPSILON


WithinGroup = Callable[[Scored, Settings], Tensor]
OverStep = Callable[[list[Tensor], list[Scored], Settings], list[Tensor]]


@dataclass(frozen=True)
class EstimatorRow:
    """An advantage estimator.

    Example:
        >>> ESTIMATORS["rloo"].compares
        True
    """

    name: str
    within: WithinGroup  # the advantages [n] within a group
    over: OverStep | None = None  # what the step then makes of all groups' advantages
    # Whether completions are compared within their group: equal rewards then give exactly 0, and a group needs two.
    compares: bool = True
    needs_greedy: bool = False  # whether the prompt's greedy completion is sampled too
    of_functions: bool = False  # whether it compares each reward function by itself, and not the total
    check: Callable[[Scored], None] | None = None  # raises where it can't use a group's rewards
    of_step: bool = (
        False  # whether a group of equal rewards may teach something too, by the step's other rewards
    )


def _group(g: Scored, how: Settings) -> Tensor:
    return g.deviation


def _rloo(g: Scored, how: Settings) -> Tensor:
    n = len(g.rewards)
    return g.deviation * (n / (n - 1))  # R − mean of the others


def _opo(g: Scored, how: Settings) -> Tensor:
    tokens = g.lengths.sum()
    return _centred(g.rewards, (g.lengths * g.rewards).sum() / tokens if tokens > 0 else g.rewards.mean())


def _gdpo(g: Scored, how: Settings) -> Tensor:
    total = torch.zeros_like(g.rewards)
    for values, weight in zip(
        g.by_function.unbind(1), how.weights or [1.0] * g.by_function.shape[1], strict=True
    ):
        ok = ~values.isnan()
        r = values[ok]
        if _differ(r):
            total[ok] += weight * (r - r.mean()) / (r.std() + how.epsilon)
    return total


def _not_negative(g: Scored) -> None:
    """Raises ValueError where a reward is negative."""
    if g.rewards.min() < 0:
        raise ValueError(
            f"--advantage_estimator maxrl: a completion of {g.source} has the reward {float(g.rewards.min()):g}; maxrl "
            "divides by the group's mean reward, so rewards must be at least 0"
        )


def _maxrl(g: Scored, how: Settings) -> Tensor:
    return g.deviation / g.rewards.mean()


def _remax(g: Scored, how: Settings) -> Tensor:
    assert g.greedy is not None
    return _centred(g.rewards, torch.tensor(g.greedy, dtype=torch.float64))


def _loo_std(g: Scored, how: Settings) -> Tensor:
    d, n = _centred(g.rewards, g.mean_of_others), len(g.rewards)
    if n == 2:
        return d
    others = g.rewards.expand(n, n)[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)
    std = torch.where(others.amax(1) - others.amin(1) > _rounding(g.rewards), others.std(1), 0.0)
    return torch.where(std > 0, d / (std + how.epsilon), d)


def _pass_k(g: Scored, how: Settings) -> Tensor:
    best, second = g.rewards.topk(2).values
    if best - second <= _rounding(g.rewards):
        return torch.zeros_like(g.rewards)
    return torch.where(g.rewards == best, (best - second) / (g.rewards.std() + how.epsilon), 0.0)


def _rewards_as_they_are(g: Scored, how: Settings) -> Tensor:
    return g.rewards.clone()


def _scaled(raw: list[Tensor], groups: list[Scored], how: Settings) -> list[Tensor]:
    """d divided by the std of its group, or of the step's rewards, + epsilon."""
    if how.scale_rewards == "none":
        return raw
    rewards = [g.rewards for g in groups]
    if how.scale_rewards == "batch":
        rewards = [torch.cat(rewards)] * len(raw) if raw else []
    return [a / (r.std() + how.epsilon) if len(r) > 1 else a for a, r in zip(raw, rewards, strict=True)]


def _normalised(raw: list[Tensor], groups: list[Scored], how: Settings) -> list[Tensor]:
    """(a − mean a) / (std a + epsilon) over the step; groups without spread keep exactly 0."""
    # The step's mean is 0 only up to rounding.
    return [
        s if a.any() else torch.zeros_like(a) for a, s in zip(raw, _whitened(raw, groups, how), strict=True)
    ]


def _whitened(raw: list[Tensor], groups: list[Scored], how: Settings) -> list[Tensor]:
    """(a − mean a) / (std a + epsilon) over the step; all equal: exactly 0."""
    step = torch.cat(raw) if raw else torch.empty(0)
    if len(step) < 2 or step.max() == step.min():
        return [torch.zeros_like(a) for a in raw]
    return [(a - step.mean()) / (step.std() + how.epsilon) for a in raw]


def _per_informative_group(raw: list[Tensor], groups: list[Scored], how: Settings) -> list[Tensor]:
    """α·d, α = B / (B − M): B completions of the step, M of them in groups without spread."""
    total = sum(len(a) for a in raw)
    informative = sum(len(a) for a in raw if a.any())
    return [a * (total / informative) if informative else a for a in raw]


ESTIMATORS = {
    row.name: row
    for row in (
        EstimatorRow("group", _group, _scaled),
        EstimatorRow("rloo", _rloo),
        EstimatorRow("reinforce_plus_plus", _group, _normalised),
        EstimatorRow("opo", _opo),
        EstimatorRow("gdpo", _gdpo, _normalised, of_functions=True),
        EstimatorRow("maxrl", _maxrl, check=_not_negative),
        EstimatorRow("remax", _remax, compares=False, needs_greedy=True),
        EstimatorRow(
            "reinforce_plus_plus_global", _rewards_as_they_are, _whitened, compares=False, of_step=True
        ),
        EstimatorRow("gpg", _group, _per_informative_group),
        EstimatorRow("loo_std", _loo_std),
        EstimatorRow("pass_k", _pass_k),
    )
}


def within_group(row: EstimatorRow, group: Scored, how: Settings) -> Tensor:
    """Returns a group's advantages [n] before anything is done over the step.

    Where the estimator compares, they are exactly 0 for a group without spread: in floating point its deviations from the
    mean may not be.
    """
    r = group.rewards
    if row.check is not None and len(r):
        row.check(group)
    if len(r) == 0 or (row.compares and not has_spread(row, group, how)):
        return torch.zeros_like(r)
    return row.within(group, how)


def has_spread(row: EstimatorRow, group: Scored, how: Settings) -> bool:
    """Tells whether rewards that the estimator compares differ: those of a function, or the totals."""
    if not row.of_functions:
        return _differ(group.rewards)
    functions = group.by_function.unbind(1)
    return any(
        _differ(column[~column.isnan()])
        for column, weight in zip(functions, how.weights or [1.0] * len(functions), strict=True)
        if weight
    )


def _differ(rewards: Tensor) -> bool:
    return len(rewards) > 1 and bool(rewards.max() - rewards.min() > _rounding(rewards))


def _rounding(rewards: Tensor) -> Tensor:
    """Returns the largest difference of two rewards that may be rounding error alone, such as that of .3 and .1 + .2."""
    return 4 * torch.finfo(rewards.dtype).eps * rewards.abs().max()


def _centred(rewards: Tensor, baseline: Tensor) -> Tensor:
    """R − baseline [n]. A difference that is only rounding error has a random sign, so it becomes 0."""
    centred = rewards - baseline
    centred[centred.abs() <= _rounding(rewards)] = 0
    return centred
