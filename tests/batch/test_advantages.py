"""Advantages against hand-made numbers, and the groups that say nothing."""

from __future__ import annotations

import pytest
import torch

from grpokit.batch.advantages import add_advantages
from helpers.tiny import group_of

NAN = float("nan")


def advantages(groups, *options):
    return [g.advantages.tolist() for g in add_advantages([group_of(r) for r in groups], *options)]


def test_group_gives_the_advantages_of_a_hand_made_case():
    """Rewards 0, 0, 1, 3: mean 1, deviations −1 −1 0 2, unbiased variance 6/3 = 2."""
    want = [d / (2**0.5 + 1e-4) for d in (-1, -1, 0, 2)]
    assert advantages([[0, 0, 1, 3]]) == [pytest.approx(want, rel=1e-14)]


def test_none_is_the_deviation():
    assert advantages([[0, 0, 1, 3]], "group", "none") == [[-1, -1, 0, 2]]


def test_batch_divides_by_the_step():
    """Step rewards 0, 2, 4, 4: mean 2.5, squares 6.25 + .25 + 2.25 + 2.25 = 11, unbiased variance 11/3."""
    std = (11 / 3) ** 0.5 + 1e-4
    got = advantages([[0.0, 2.0], [4.0, 4.0]], "group", "batch")
    assert got == [pytest.approx([-1 / std, 1 / std]), [0, 0]]


def test_rloo_gives_the_advantages_of_a_hand_made_case():
    """R − mean of the others: 0 − 4/3, 0 − 4/3, 1 − 1, 3 − 1/3."""
    assert advantages([[0, 0, 1, 3]], "rloo", "group") == [
        pytest.approx([-4 / 3, -4 / 3, 0, 8 / 3], abs=1e-15)
    ]


@pytest.mark.parametrize("estimator", ["group", "rloo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("rewards", [[0.1] * 8, [0.3] * 7, [5.0], [NAN, 2.0], [NAN, NAN]])
def test_a_group_that_says_nothing_is_exactly_zero(estimator, scale, rewards):
    assert advantages([rewards, [0.0, 1.0]], estimator, scale)[0] == [0.0] * len(rewards)


def test_completions_without_a_reward_are_masked_and_out_of_the_statistics():
    group = add_advantages([group_of([0.0, NAN, 2.0])], "group", "none")[0]
    assert group.advantages.tolist() == [-1, 0, 1]
    assert [bool(r.trainable.any()) for r in group.rollouts] == [True, False, True]


def test_a_reward_in_the_middle_has_no_sign():
    """.1 + .2 + .3 over 3 isn't .2 in floating point: the middle completion's deviation is rounding, so it is 0."""
    assert advantages([[0.1, 0.2, 0.3]])[0][1] == 0
    assert advantages([[0.1, 0.2, 0.3]], "rloo")[0][1] == 0


def test_unknown_names_are_refused():
    for options in (("gruop",), ("group", "grup")):
        with pytest.raises(ValueError, match="there are group"):
            advantages([[0.0, 1.0]], *options)


def test_unscored_groups_are_refused():
    import dataclasses

    with pytest.raises(ValueError, match="no rewards yet"):
        add_advantages([dataclasses.replace(group_of([1.0]), reward=None)])


def test_advantages_are_float64_all_the_way():
    assert add_advantages([group_of([0, 1])])[0].advantages.dtype == torch.float64
