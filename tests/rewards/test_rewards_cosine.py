"""The `cosine` reward, by values of the formula of arXiv 2502.03373 that were computed by hand."""

from __future__ import annotations

import math

import pytest

from grpokit.rewards import score
from grpokit.rewards.cosine import cosine
from helpers.completions import group, load

# η_min + (η_max − η_min)/2 · (1 + cos(πt/T)); cos of 0, 60, 90, 120 and 180 degrees is 1, 1/2, 0, −1/2 and −1.
GOLDEN = [(0, 1.0), (4, 0.875), (6, 0.75), (8, 0.625), (12, 0.5), (13, 0.5), (24, 0.5)]


@pytest.mark.parametrize(("length", "value"), GOLDEN)
def test_values(length, value):
    assert cosine(length, 12, 1.0, 0.5) == pytest.approx(value, abs=1e-15)
    assert cosine(length, 12, -0.5, 0.0) == pytest.approx(0.5 - value, abs=1e-15)  # the values of a wrong one


def test_right_and_wrong_completions_and_those_without_a_reference():
    texts = ["\\boxed{7}", "\\boxed{8}"]  # 9 tokens each: one for each letter
    groups = [group(*texts, answer="7"), group("7", line=2, answer=None)]
    options = {"cosine_min_len_value_correct": 2.0, "cosine_max_len_value_wrong": -4.0}
    done = score(groups, load("cosine", cosine_max_len=18, **options))
    # half way: the middle of 2 and 0.5, and of −0.5 and −4
    assert done[0].reward.tolist() == pytest.approx([1.25, -2.25])
    assert math.isnan(done[1].reward[0])
    at_the_limit = score(groups, load("cosine", max_completion_length=9))
    assert at_the_limit[0].reward.tolist() == [0.5, 0.0]
