"""The statistics of a comparison: against slow loops, against values worked out by hand, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from grpokit.commands.compare.statistics import (
    RESAMPLES,
    compare_pairs,
    describe,
    holm,
    paired_t,
    power,
    probability_of_improvement,
    seeds_needed,
)


def scores_of(rng, variants: int, seeds: int, gap: float = 0.0) -> dict[str, dict[int, float]]:
    """Variants whose paired differences have a standard deviation of 1; each is `gap` above the one before."""
    shared = rng.normal(0, 3, seeds)
    return {
        f"v{place}": dict(enumerate(shared + rng.normal(0, math.sqrt(0.5), seeds) + gap * place))
        for place in range(variants)
    }


# --------------------------------------------------------------------------- size and power


@pytest.mark.parametrize(("variants", "seeds"), [(2, 3), (2, 5), (4, 5)])
def test_of_200_comparisons_of_equal_variants_at_most_18_call_any_pair_different(variants, seeds):
    """Expected: 10 of two variants. 18 is exceeded by chance in 0.7 % of such simulations."""
    rng = np.random.default_rng(20240 + seeds)
    found = sum(bool(compare_pairs(scores_of(rng, variants, seeds)).told_apart) for _ in range(200))
    assert found <= 18
    if variants == 2:
        assert found >= 3  # a test that never rejects would pass too


def test_a_difference_of_three_standard_deviations_is_found_with_five_seeds():
    rng = np.random.default_rng(7)
    found = sum(bool(compare_pairs(scores_of(rng, 2, 5, gap=3.0)).told_apart) for _ in range(200))
    assert found >= 0.9 * 200


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.26), (5, 0.10)])
def test_bootstrap_intervals_would_call_as_many_equal_pairs_different_as_the_page_says(seeds, share):
    """The page's figures: how often a percentile interval of the paired differences' interquartile mean leaves out 0."""
    rng, times = np.random.default_rng(1), 3000
    differences = rng.normal(size=(times, seeds))
    picks = rng.integers(0, seeds, size=(times, 500, seeds))
    samples = np.sort(np.take_along_axis(differences[:, None, :], picks, axis=2), axis=2)
    cut = seeds // 4
    middles = samples[..., cut : seeds - cut].mean(-1)  # [times, 500]
    low, high = np.quantile(middles, [0.025, 0.975], axis=1)
    assert np.mean((low > 0) | (high < 0)) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("difference", "level"), [(1.0, 0.05), (1.5, 0.05 / 6), (0.7, 0.05)])
def test_the_seeds_needed_find_the_difference_in_80_percent_and_one_fewer_does_not(difference, level):
    needed = seeds_needed(difference, 1.0, level)
    rng = np.random.default_rng(3)
    samples = rng.normal(difference, 1.0, size=(4000, needed))
    found = np.mean([paired_t(row, np.zeros(needed))[0] <= level for row in samples])
    assert found == pytest.approx(power(difference, 1.0, needed, level), abs=0.025)
    assert power(difference, 1.0, needed - 1, level) < 0.8 <= power(difference, 1.0, needed, level)


def test_seeds_that_cannot_be_said():
    assert seeds_needed(0.0, 1.0, 0.05) is None
    assert seeds_needed(1.0, 0.0, 0.05) is None
    assert seeds_needed(math.nan, math.nan, 0.05) is None
    assert seeds_needed(0.001, 1.0, 0.05) is None  # over 1,000
    assert seeds_needed(1000.0, 1.0, 0.05) == 2


# --------------------------------------------------------------------------- the figures


def test_differences_that_differ_by_rounding_alone_need_no_thousand_seeds():
    """0.3 + 0.1·s − (0.2 + 0.1·s) is 0.1 up to the last digit: there is no spread to plan with."""
    scores = {"a": {s: 0.3 + 0.1 * s for s in range(5)}, "b": {s: 0.2 + 0.1 * s for s in range(5)}}
    result = compare_pairs(scores)
    assert result.pairs[0].spread == 0
    assert result.pairs[0].needed is None
    assert result.needed == ()
    assert seeds_needed(1.0, 1e-12, 0.05) == 2  # and a spread that is tiny needs the fewest


def test_holm_by_hand():
    """m = 4. In order: 4·0.01 = 0.04, 3·0.013 = 0.039 → 0.04, 2·0.03 = 0.06, 1·0.04 → 0.06."""
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def t_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t, by the trapezoidal rule in x = tan(u)."""
    u = np.linspace(math.atan(t), math.pi / 2, 200_001)[:-1]
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = scale * (1 + np.tan(u) ** 2 / freedom) ** (-(freedom + 1) / 2) / np.cos(u) ** 2
    return float(np.sum((density[1:] + density[:-1]) / 2) * (u[1] - u[0]))


def test_all_figures_are_those_of_slow_loops():
    scores = scores_of(np.random.default_rng(11), 4, 5, gap=0.8)
    result = compare_pairs(scores)
    assert [(pair.first, pair.second) for pair in result.pairs] == list(itertools.combinations(scores, 2))
    expected = []
    for pair in result.pairs:
        differences = [scores[pair.first][seed] - scores[pair.second][seed] for seed in range(5)]
        mean = sum(differences) / 5
        spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4)
        t = abs(mean) / (spread / math.sqrt(5))
        assert pair.difference == pytest.approx(mean)
        assert pair.spread == pytest.approx(spread)
        assert pair.p == pytest.approx(2 * t_tail(t, 4), rel=1e-4)
        half = 2.7764451 * spread / math.sqrt(5)  # 97.5 % point of t with 4 degrees of freedom, from a table
        assert (pair.low, pair.high) == pytest.approx((mean - half, mean + half))
        better = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a in scores[pair.first].values()
            for b in scores[pair.second].values()
        ]
        assert pair.improvement == pytest.approx(sum(better) / 25)
        expected.append(pair.p)
    assert [pair.adjusted for pair in result.pairs] == pytest.approx(holm(expected))
    assert [pair.different for pair in result.pairs] == [p <= 0.05 for p in holm(expected)]


def test_the_middle_half_leaves_out_a_quarter_on_both_sides_and_its_interval_repeats():
    values = [9.0, 1.0, 2.0, 3.0, 4.0, 100.0, -50.0, 2.5]  # sorted, two of eight go on each side
    single = describe("a", values)
    assert single.middle == pytest.approx((2.0 + 2.5 + 3.0 + 4.0) / 4)
    rng = np.random.default_rng(5)
    middles = sorted(
        float(np.mean(np.sort(rng.choice(values, len(values)))[2:-2])) for _ in range(RESAMPLES * 5)
    )
    assert single.low == pytest.approx(middles[len(middles) * 25 // 1000], abs=0.6)
    assert single.high == pytest.approx(middles[len(middles) * 975 // 1000], abs=2.5)
    assert describe("a", values) == single
    assert math.isnan(describe("a", [1.0, 2.0]).low)


def test_probability_of_improvement_counts_ties_half():
    assert probability_of_improvement([1.0, 2.0], [2.0, 0.0]) == 0.625
    assert math.isnan(probability_of_improvement([], [1.0]))


# --------------------------------------------------------------------------- what cannot be tested


def test_only_common_seeds_are_paired():
    scores = {"a": {1: 1.0, 2: 2.1, 3: 3.0, 9: 50.0}, "b": {3: 2.0, 1: 0.1, 2: 1.0, 7: -50.0}}
    [pair] = compare_pairs(scores).pairs
    assert pair.seeds == 3
    assert pair.difference == pytest.approx((0.9 + 1.1 + 1.0) / 3)


def test_below_two_common_seeds_nothing_is_decided_or_counted():
    result = compare_pairs({"a": {1: 1.0}, "b": {1: 0.0}, "c": {2: 0.5}})
    assert result.tests == 0
    assert [pair.p for pair in result.pairs] == [None] * 3
    assert not result.told_apart
    assert result.needed == ()


def test_differences_without_spread():
    """All 0: p = 1. All the same otherwise: the test that flips signs, 2/2ⁿ, which needs six seeds for 5 %."""
    same = {seed: 0.1 * seed for seed in range(6)}
    more = {seed: value + 0.25 for seed, value in same.items()}
    result = compare_pairs({"a": same, "b": dict(same), "c": more})
    found = {(pair.first, pair.second): pair for pair in result.pairs}
    assert found["a", "b"].p == 1.0
    assert found["a", "c"].p == pytest.approx(2 / 2**6)
    assert math.isnan(found["a", "c"].low)
    five = compare_pairs({"a": dict(itertools.islice(same.items(), 5)), "c": more})
    assert five.pairs[0].p == pytest.approx(2 / 2**5)
    assert not five.pairs[0].different


def test_with_a_baseline_only_its_comparisons_are_made_and_corrected_for():
    scores = scores_of(np.random.default_rng(2), 4, 5)
    result = compare_pairs(scores, baseline="v2")
    assert [(pair.first, pair.second) for pair in result.pairs] == [("v0", "v2"), ("v1", "v2"), ("v3", "v2")]
    assert result.tests == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": 1.0}, "--alpha 1.0: must lie between 0 and 1"),
        ({"baseline": "x"}, "--baseline x: no such variant; there are a, b"),
    ],
)
def test_mistakes_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        compare_pairs({"a": {1: 0.0}, "b": {1: 0.0}}, **change)
    with pytest.raises(ValueError, match="a, seed 1: the score is nan"):
        compare_pairs({"a": {1: math.nan}})
