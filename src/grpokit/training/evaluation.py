"""Evaluates on held-out prompts: pass@1 greedy and sampled, pass@k, and the mean reward."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..common.console import counting
from ..common.figures import set_names, split_figure
from ..parallel import World
from ..rewards import Reward
from ..rollouts import Sampler
from ..rollouts.step_rollouts import sample_share
from ..types import Metrics, Prompt, RolloutGroup, join_metrics
from .voting import estimate_maj_at_k, vote_of

# (prompts, how many completions of each, greedy) → their groups, scored
Complete = Callable[[Sequence[Prompt], int, bool], list[RolloutGroup]]

Score = Callable[
    [Sequence[RolloutGroup], Sequence[Prompt], tuple[Reward, ...] | None], tuple[list[RolloutGroup], Metrics]
]
"""(this rank's groups, the prompts, the rewards) → the scored groups of all ranks, in the order of the prompts, and what the
reward functions have logged."""

WIDTH = 80  # columns of the lines about several sets
PASS = 1.0  # a completion passes where the first reward function gives it at least this


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found. Example: `Evaluation({"eval/pass@1": 0.25}, by_prompt={"a.jsonl:1": 0.25})`"""

    figures: dict[str, float]
    by_prompt: dict[
        str, float
    ]  # row → the share of its sampled completions that passed; NaN where none could


def evaluate(
    complete: Complete,
    prompts: Sequence[Prompt],
    *,
    num_generations: int,
    pass_at_k: Sequence[int],
    batch_prompts: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Computes `eval/pass@1_greedy`, `eval/pass@k` and `eval/maj@k` for each k, `eval/reward` and `eval/mean_length`.

    Where the prompts are of several datasets, each has the same figures of its own, as `eval/DATASET/pass@1`.

    `eval/pass@1_ci95` is half the width of pass@1's 95 % confidence interval: 1.96 standard errors of the mean over
    prompts (samples of one prompt are not independent; arXiv 2411.00640).

    A completion passes where the *first* reward function gives it at least 1. pass@k is the unbiased estimator of
    Chen et al. (arXiv 2107.03374, eq. 1) from `num_generations` samples; prompts where that function does not
    apply are left out. maj@k is the chance that the most common answer of k samples is right (see `voting.py`).

    Args:
        complete: (prompts, completions of each, greedy) → their scored groups.
        prompts: the held-out prompts.
        num_generations: sampled completions of each prompt.
        pass_at_k: the values of k.
        batch_prompts: prompts that are sampled together.
        progress: called with the number of prompts that are done.

    Returns:
        The figures by name, NaN where there was nothing to measure, and the share that passed of each prompt.
    """
    found: list[_Found] = []
    for start in range(0, len(prompts), batch_prompts):
        part = prompts[start : start + batch_prompts]
        sampled, greedy = complete(part, num_generations, False), complete(part, 1, True)
        found += [_Found.of(*pair) for pair in zip(sampled, greedy, strict=True)]
        progress(start + len(part))
    figures = _figures(found, pass_at_k)
    names = sorted({each.dataset for each in found})
    for name in names if len(names) > 1 else ():
        own = _figures([each for each in found if each.dataset == name], pass_at_k)
        figures |= {f"eval/{name}/{figure.removeprefix('eval/')}": value for figure, value in own.items()}
    return Evaluation(figures, {each.source: each.share for each in found})


@dataclass(frozen=True)
class _Found:
    """What an evaluation has found for one prompt."""

    source: str
    dataset: str  # "" where there is only one
    passed: list[bool]  # for each sampled completion; none where the first function does not apply
    votes: list[str]  # the answers of these completions
    greedy: list[bool]
    rewards: list[float]
    lengths: list[int]

    @classmethod
    def of(cls, sampled: RolloutGroup, greedy: RolloutGroup) -> _Found:
        assert sampled.reward is not None  # scored
        return cls(
            sampled.prompt.source,
            sampled.prompt.dataset,
            _passes(sampled),
            _votes(sampled),
            _passes(greedy),
            [reward for reward in sampled.reward.tolist() if not math.isnan(reward)],
            [len(rollout.completion_ids) for rollout in sampled.rollouts if not rollout.is_dropped],
        )

    @property
    def share(self) -> float:
        """The share of the sampled completions that passed; NaN where none could."""
        return sum(self.passed) / len(self.passed) if self.passed else math.nan


def _figures(found: Sequence[_Found], pass_at_k: Sequence[int]) -> dict[str, float]:
    figures = {"eval/pass@1_greedy": _mean([each for one in found for each in one.greedy])}
    for k in pass_at_k:
        able = [one for one in found if len(one.passed) >= k]
        figures[f"eval/pass@{k}"] = _mean(
            [estimate_pass_at_k(len(one.passed), sum(one.passed), k) for one in able]
        )
        if k > 1:
            figures[f"eval/maj@{k}"] = _mean([estimate_maj_at_k(one.passed, one.votes, k) for one in able])
    figures["eval/pass@1_ci95"] = half_width([one.share for one in found if one.passed])
    figures["eval/reward"] = _mean([reward for one in found for reward in one.rewards])
    figures["eval/mean_length"] = _mean([length for one in found for length in one.lengths])
    return figures


def figure_names(num_generations: int) -> list[str]:
    """Returns the names of the figures of one set in a run, without those that reward functions log.

    Example:
        >>> figure_names(4)[:4]
        ['eval/pass@1_greedy', 'eval/pass@1', 'eval/pass@4', 'eval/maj@4']
    """
    return list(_figures([], sorted({1, num_generations})))


def logged_figures(logged: Metrics) -> dict[str, float]:
    """Returns what reward functions have logged in an evaluation, as figures. Counts of 0 are left out."""
    found = {name: logged[name] for name in sorted(logged)}
    return {f"eval/{n}": metric.value for n, metric in found.items() if metric.kind != "sum" or metric.value}


def half_width(values: Sequence[float]) -> float:
    """Returns half the width of the 95 % confidence interval of a mean over prompts; NaN for fewer than two."""
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def estimate_pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between {k} and n samples of a prompt; there are {n}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _passes(group: RolloutGroup) -> list[bool]:
    assert group.rewards is not None  # scored
    first = group.rewards[:, 0]
    return [bool(value >= PASS) for value in first if not value.isnan()]


def _votes(group: RolloutGroup) -> list[str]:
    assert group.rewards is not None  # scored
    pairs = zip(group.rewards[:, 0], group.rollouts, strict=True)
    return [vote_of(group.prompt.prefix + rollout.text) for value, rollout in pairs if not value.isnan()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class HeldOut:
    """A set of held-out prompts, its rewards, and the sampler for it, with a separate seed."""

    name: str  # "" for a single set without a name
    prompts: Sequence[Prompt]
    rewards: tuple[Reward, ...]
    sampler: Sampler
    num_generations: int

    def evaluate(
        self,
        score: Score,
        step: int,
        world: World,
        pause: Callable[[], None],
    ) -> dict[str, float]:
        """Evaluates the current weights, on all ranks.

        Args:
            score: see `Score`.
            step: steps done, for the progress bar.
            world: the ranks.
            pause: called where the run may stop.

        Returns:
            The figures of `evaluate`, and what reward functions log of the sampled completions, if they are finite;
            `eval/NAME/...` of a set with a name.
        """

        logged: Metrics = {}

        def complete(prompts: Sequence[Prompt], count: int, greedy: bool) -> list[RolloutGroup]:
            budget = getattr(self.sampler, "budget", None)  # the evaluation's own
            groups = sample_share(self.sampler, prompts, count, world, pause, greedy=greedy, budget=budget)
            scored, by_functions = score(groups, prompts, self.rewards)
            if not greedy:  # as of eval/reward
                logged.update(join_metrics(logged, by_functions))
            return scored

        self.sampler.sync()
        of = f" of {self.name}" if self.name else ""
        with counting(f"evaluation{of} at step {step}", len(self.prompts)) as progress:
            figures = evaluate(
                complete,
                self.prompts,
                num_generations=self.num_generations,
                pass_at_k=sorted({1, self.num_generations}),
                progress=progress,
            ).figures
        figures |= logged_figures(logged)
        prefix = f"eval/{self.name}/" if self.name else "eval/"
        return {
            prefix + name.removeprefix("eval/"): value
            for name, value in figures.items()
            if math.isfinite(value)
        }


def evaluate_sets(
    sets: Sequence[HeldOut], score: Score, step: int, world: World, pause: Callable[[], None]
) -> dict[str, float]:
    """Evaluates each set, on all ranks. With names, `eval/reward` is the mean of the sets' rewards.

    Args:
        sets: the sets.
        score: see `Score`.
        step: steps done, for the progress bar.
        world: the ranks.
        pause: called where the run may stop.

    Returns:
        The figures of all sets.
    """
    figures: dict[str, float] = {}
    for one in sets:
        figures |= one.evaluate(score, step, world, pause)
    rewards = [figures[name] for one in sets if (name := f"eval/{one.name}/reward") in figures]
    return {"eval/reward": _mean(rewards), **figures} if rewards else figures


def describe_evaluation(step: int, figures: Mapping[str, float]) -> str:
    """Returns the figures in one line. With several sets, each has lines of its own, of 80 columns at most.

    Example:
        >>> print(describe_evaluation(4, {"eval/reward": 0.5, "eval/a/pass@1": 0.25, "eval/b/pass@1": 0.75}))
        evaluation at step 4: reward 0.500
          a  pass@1 0.250
          b  pass@1 0.750
    """
    sets = set_names(figures)
    by_set: dict[str, list[str]] = {name: [] for name in ("", *sets)}
    for name, value in figures.items():
        own, short = split_figure(name, sets)
        by_set[own].append(f"{short} {value:.3f}")
    lines = [f"evaluation at step {step}: {'  '.join(by_set.pop(''))}"]
    for name, parts in by_set.items():
        lines.append(f"  {name}")
        for part in parts:
            if len(lines[-1]) + 2 + len(part) > WIDTH:
                lines.append("   ")
            lines[-1] += f"  {part}"
    return "\n".join(lines)
