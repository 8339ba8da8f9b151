"""The statistics of a comparison: pure functions of the scores that each variant reached with each seed.

Decisions come from the paired t-test, whose size is exact for normal differences at any number of seeds, corrected by Holm.
The interquartile mean, its bootstrap interval and the probability of improvement (Agarwal et al. 2021, arXiv:2108.13264) are
for display alone: bootstrap intervals are too narrow for a few seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

NO_SPREAD = 1e-9  # a spread of differences below this share of the scores is rounding
RESAMPLES = 2_000
POWER = 0.8
MOST_SEEDS = 1_000  # a larger number of seeds is not searched for

Scores = Mapping[str, Mapping[int, float]]  # variant → seed → score


@dataclass(frozen=True)
class Pair:
    """The comparison of two variants over the seeds that both have.

    Example:
        >>> pair = compare_pairs({"a": {1: 0.5, 2: 0.6, 3: 0.7}, "b": {1: 0.4, 2: 0.4, 3: 0.5}}).pairs[0]
        >>> pair.first, pair.second, round(pair.difference, 3), pair.seeds
        ('a', 'b', 0.167, 3)
    """

    first: str
    second: str
    seeds: int  # that both have
    difference: float  # mean of first − second; NaN without a common seed
    spread: float  # standard deviation of the paired differences; NaN below two seeds
    low: float  # interval of the difference by t, at 1 − alpha; NaN where there is no spread to judge by
    high: float
    p: float | None  # the test's p-value; None: nothing can be tested
    improvement: float  # probability that a run of `first` scores higher than a run of `second`
    adjusted: float | None = None  # p after Holm's correction
    different: bool = False  # adjusted ≤ alpha
    needed: int | None = (
        None  # seeds that would tell this difference apart; None: over MOST_SEEDS, or unknown
    )


@dataclass(frozen=True)
class Single:
    """The scores of one variant.

    Example:
        >>> single = describe("a", [0.1, 0.5, 0.6, 0.7, 5.0])
        >>> round(single.mean, 2), round(single.middle, 2)
        (1.38, 0.6)
    """

    name: str
    seeds: int
    mean: float
    middle: float  # interquartile mean
    low: float  # its bootstrap interval; NaN below three seeds
    high: float


@dataclass(frozen=True)
class Comparison:
    """All pairs that were compared, and each variant alone.

    Example:
        >>> result = compare_pairs({"a": {1: 0.5}, "b": {1: 0.4}})
        >>> result.tests, result.pairs[0].p is None
        (0, True)
    """

    alpha: float
    baseline: str | None
    singles: tuple[Single, ...]  # in the order of the scores given
    pairs: tuple[Pair, ...]
    needed: tuple[tuple[float, int | None], ...]  # (difference, seeds that would tell it apart)

    @property
    def tests(self) -> int:
        """The number of pairs that were tested, for which Holm corrects."""
        return sum(pair.p is not None for pair in self.pairs)

    @property
    def told_apart(self) -> tuple[Pair, ...]:
        """The pairs that differ."""
        return tuple(pair for pair in self.pairs if pair.different)


def check_alpha(alpha: float) -> None:
    """Raises ValueError unless alpha is a probability between 0 and 1."""
    if not 0 < alpha < 1:
        raise ValueError(f"--alpha {alpha}: must lie between 0 and 1, such as 0.05")


def compare_pairs(scores: Scores, alpha: float = 0.05, baseline: str | None = None) -> Comparison:
    """Tests which variants differ: paired t-tests on the seeds that two variants share, corrected by Holm.

    Args:
        scores: variant → seed → score.
        alpha: the probability of calling any pair different where all are equal.
        baseline: compare every other variant with this one alone; None: all pairs.

    Returns:
        The comparison. With a baseline, it is `second` in every pair.

    Raises:
        ValueError: alpha is not between 0 and 1, there is no such baseline, or a score is not finite.

    Example:
        >>> scores = {"a": {1: 1.0, 2: 2.1, 3: 2.9}, "b": {1: 0.1, 2: 1.0, 3: 2.1}}
        >>> compare_pairs(scores).pairs[0].different
        True
    """
    check_alpha(alpha)
    if baseline is not None and baseline not in scores:
        raise ValueError(f"--baseline {baseline}: no such variant; there are {', '.join(scores)}")
    for name, own in scores.items():
        for seed, score in own.items():
            if not math.isfinite(score):
                raise ValueError(f"{name}, seed {seed}: the score is {score}; expected a finite number")
    if baseline is None:
        names = list(itertools.combinations(scores, 2))
    else:
        names = [(name, baseline) for name in scores if name != baseline]
    pairs = [_compare(first, second, scores, alpha) for first, second in names]
    tested = [pair.p for pair in pairs if pair.p is not None]
    adjusted = iter(holm(tested))
    level = alpha / max(1, len(tested))
    done = []
    for pair in pairs:
        own = None if pair.p is None else next(adjusted)
        needed = seeds_needed(pair.difference, pair.spread, level)
        done.append(replace(pair, adjusted=own, different=own is not None and own <= alpha, needed=needed))
    return Comparison(
        alpha=alpha,
        baseline=baseline,
        singles=tuple(describe(name, list(own.values())) for name, own in scores.items()),
        pairs=tuple(done),
        needed=_plan(done, scores, level),
    )


def _compare(first: str, second: str, scores: Scores, alpha: float) -> Pair:
    """Compares two variants, without a correction."""
    one, other = scores[first], scores[second]
    common = [seed for seed in one if seed in other]
    x, y = np.array([one[s] for s in common]), np.array([other[s] for s in common])
    n, differences = len(common), x - y
    p, low, high = paired_t(x, y, alpha)
    return Pair(
        first=first,
        second=second,
        seeds=n,
        difference=float(differences.mean()) if n else math.nan,
        spread=_spread(x, y) if n > 1 else math.nan,
        low=low,
        high=high,
        p=p,
        improvement=probability_of_improvement(list(one.values()), list(other.values())),
    )


def paired_t(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, alpha: float = 0.05):
    """The paired t-test: t = mean(d) / (sd(d)/√n) with d = x − y, against Student's t of n − 1 degrees of freedom.

    Where all differences are equal, t has no spread to divide by. If they are 0, p is 1; else p is that of the test that flips
    signs, 2/2ⁿ: n differences of one sign.

    Args:
        x: scores of one variant.
        y: scores of the other, for the same seeds in the same order.
        alpha: 1 − the confidence of the interval.

    Returns:
        (p, low, high): p is None below two seeds; the interval of the mean difference is NaN without a spread.

    Example:
        >>> p, low, high = paired_t([3.0, 5.0, 6.0, 8.0], [2.0, 3.0, 5.0, 6.0])
        >>> round(p, 4), round(low, 3), round(high, 3)
        (0.0138, 0.581, 2.419)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    differences = x - y
    if len(x) < 2:
        return None, math.nan, math.nan
    if not differences.any():
        return 1.0, 0.0, 0.0
    if not _spread(x, y):
        return 2.0 ** (1 - len(x)), math.nan, math.nan
    result = stats.ttest_rel(x, y)
    interval = result.confidence_interval(1 - alpha)
    return float(result.pvalue), float(interval.low), float(interval.high)


def _spread(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the standard deviation of the paired differences; 0 where it is rounding."""
    spread, scale = float((x - y).std(ddof=1)), max(np.abs(x).max(), np.abs(y).max())
    return spread if spread > NO_SPREAD * scale else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m values becomes max over j ≤ k of min(1, (m − j + 1)·p₍ⱼ₎).

    Holm 1979, "A simple sequentially rejective multiple test procedure". Rejecting what is at most alpha calls any true
    hypothesis false with a probability of at most alpha, however the tests depend on each other.

    Args:
        p: one value for each test.

    Returns:
        The corrected values, in the order of `p`.

    Example:
        >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected


def describe(name: str, scores: Sequence[float]) -> Single:
    """Describes a variant's scores: their mean, and their interquartile mean with a bootstrap interval of 95 %.

    The interquartile mean leaves out the lowest and the highest quarter of the runs, rounded down (arXiv:2108.13264, section
    4.3). The interval has its percentiles over resampled runs.

    Args:
        name: the variant.
        scores: one for each seed.

    Example:
        >>> describe("a", [1.0, 2.0, 3.0, 4.0]).middle
        2.5
    """
    values = np.asarray(scores, dtype=np.float64)
    low = high = math.nan
    if len(values) >= 3:
        interval = stats.bootstrap(
            (values,),
            lambda sample, axis: stats.trim_mean(sample, 0.25, axis=axis),
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    mean = float(values.mean()) if len(values) else math.nan
    middle = float(stats.trim_mean(values, 0.25)) if len(values) else math.nan
    return Single(name, len(values), mean, middle, low, high)


def probability_of_improvement(x: Sequence[float], y: Sequence[float]) -> float:
    """The probability that a run of one variant scores higher than a run of another (arXiv:2108.13264, section 4.3).

    P(X > Y) = mean over all (i, j) of [xᵢ > yⱼ] + ½[xᵢ = yⱼ].

    Args:
        x: scores of one variant.
        y: scores of the other.

    Returns:
        A share; NaN where one of them has no score.

    Example:
        >>> probability_of_improvement([1.0, 3.0], [2.0, 1.0])
        0.625
    """
    if not len(x) or not len(y):
        return math.nan
    a, b = np.asarray(x, dtype=np.float64)[:, None], np.asarray(y, dtype=np.float64)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def power(difference: float, spread: float, seeds: int, level: float) -> float:
    """The probability that the paired t-test finds a difference: the tails of the noncentral t, nc = |d|/sd · √n.

    Args:
        difference: the true mean of the paired differences.
        spread: their standard deviation.
        seeds: how many there are.
        level: the size of the test.

    Example:
        >>> round(power(1.0, 1.0, 10, 0.05), 3)
        0.803
    """
    critical, freedom = stats.t.ppf(1 - level / 2, seeds - 1), seeds - 1
    shift = abs(difference) / spread * math.sqrt(seeds)
    if shift > 1e3 * critical:
        return 1.0  # certain; scipy returns NaN for noncentralities far beyond that
    # With this noncentrality the other tail is far below any digit that is shown, and scipy may return NaN for it.
    other = stats.nct.cdf(-critical, freedom, shift) if shift < 5 else 0.0
    return float(stats.nct.sf(critical, freedom, shift) + other)


def seeds_needed(difference: float, spread: float, level: float) -> int | None:
    """Returns the smallest number of seeds at which the paired t-test finds a difference with a probability of 80 %.

    Args:
        difference: the true mean of the paired differences.
        spread: their standard deviation.
        level: the size of the test: alpha over the number of comparisons.

    Returns:
        The number; None where it is over 1,000, or where difference or spread is unknown or 0.

    Example:
        >>> seeds_needed(1.0, 1.0, 0.05)
        10
    """
    if not (abs(difference) > 0 and spread > 0) or power(difference, spread, MOST_SEEDS, level) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # high is enough, low is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, spread, middle, level) >= POWER else (middle, high)
    return high


def _plan(pairs: Sequence[Pair], scores: Scores, level: float) -> tuple[tuple[float, int | None], ...]:
    """Returns the seeds that would tell some differences apart, given the median spread of the pairs."""
    spreads = [pair.spread for pair in pairs if pair.spread > 0]
    if not spreads:
        return ()
    typical = float(np.median(spreads))
    values = [score for own in scores.values() for score in own.values()]
    shares = all(0 <= value <= 1 for value in values)
    wanted = (0.01, 0.02, 0.05) if shares else tuple(typical * part for part in (0.5, 1.0, 2.0))
    return tuple((difference, seeds_needed(difference, typical, level)) for difference in wanted)
