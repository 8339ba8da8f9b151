"""Turn returns against slow loops and hand-made numbers; rewards of tokens on their way to the advantages."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpokit.batch.advantages import add_advantages, has_signal
from grpokit.rewards import RewardError, score
from grpokit.rollouts.gather import groups_from_tensors, groups_to_tensors
from grpokit.types import Episode
from helpers.completions import group, load
from helpers.tiny import group_of

NAN = float("nan")


def group_with_turns(episodes, position=0):
    """A group from each completion's turns: (tokens, reward) of each. One token of an environment follows each turn."""
    totals = [math.fsum(reward for _, reward in turns) for turns in episodes]
    lengths = [sum(tokens + 1 for tokens, _ in turns) for turns in episodes]
    plain = group_of(totals, lengths, position)
    rollouts = []
    for turns, rollout in zip(episodes, plain.rollouts, strict=True):
        spans, at, trainable = [], 0, torch.zeros(len(rollout.completion_ids), dtype=torch.bool)
        for tokens, _ in turns:
            spans.append((at, at + tokens))
            trainable[at : at + tokens] = True
            at += tokens + 1
        episode = Episode((1,), [], tuple(spans), "done", turn_rewards=tuple(r for _, r in turns))
        rollouts.append(dataclasses.replace(rollout, trainable=trainable, episode=episode))
    return dataclasses.replace(plain, rollouts=tuple(rollouts))


def by_hand(episodes, discount, epsilon, is_scaled=True):
    """An advantage for each turn, by loops."""
    returns = []
    for turns in episodes:
        returns.append(
            [sum(discount ** (j - k) * turns[j][1] for j in range(k, len(turns))) for k in range(len(turns))]
        )
    found = []
    for own in returns:
        row = []
        for k, value in enumerate(own):
            at = [other[min(k, len(other) - 1)] for other in returns]
            mean = sum(at) / len(at)
            std = math.sqrt(sum((x - mean) ** 2 for x in at) / (len(at) - 1))
            row.append((value - mean) / (std + epsilon if is_scaled else 1) if max(at) > min(at) else 0.0)
        found.append(row)
    return found


def of_turns(made):
    """The advantage of each turn, which all its tokens have; tokens between turns have none that counts."""
    found = []
    for advantages, rollout in zip(made.token_advantages, made.rollouts, strict=True):
        rows = [advantages[begin:end] for begin, end in rollout.episode.turns]
        assert all(len(row.unique()) == 1 for row in rows)
        found.append([float(row[0]) for row in rows])
    return found


episodes = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 3).map(lambda n: n / 2)), min_size=1, max_size=4),
    min_size=2,
    max_size=5,
)


@given(
    turns=episodes, discount=st.sampled_from([0.0, 0.5, 0.9, 1.0]), scale=st.sampled_from(["group", "none"])
)
def test_returns_against_loops(turns, discount, scale):
    [made] = add_advantages([group_with_turns(turns)], "group", scale, epsilon=0.01, turn_discount=discount)
    want = by_hand(turns, discount, 0.01, scale == "group")
    for got, expected in zip(of_turns(made), want, strict=True):
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_hand_made_case():
    """Rewards 1, 0 and 0, 1 with γ ½: returns 1, 0 and ½, 1. So the first turn of the first completion is the better one."""
    turns = [[(2, 1.0), (2, 0.0)], [(2, 0.0), (2, 1.0)]]
    [made] = add_advantages([group_with_turns(turns)], "group", "none", turn_discount=0.5)
    assert of_turns(made) == [[0.25, -0.5], [-0.25, 0.5]]
    assert made.advantages.tolist() == [-0.125, 0.125]


@given(
    totals=st.lists(st.integers(0, 4).map(lambda n: n / 4), min_size=1, max_size=6),
    scale=st.sampled_from(["group", "none"]),
)
def test_rewards_in_the_last_turn_alone_are_group_exactly(totals, scale):
    turns = [[(2, 0.0)] * (i % 3) + [(1, total)] for i, total in enumerate(totals)]
    taught = group_with_turns(turns)
    [plain] = add_advantages([taught], "group", scale)
    [made] = add_advantages([taught], "group", scale, turn_discount=1.0)
    for advantage, row in zip(plain.advantages.tolist(), of_turns(made), strict=True):
        assert row == [advantage] * len(row)


def test_the_reward_functions_are_the_last_turns():
    """The total is 3 more than the turns' rewards: the last turn has it, and with γ 1 the first one too."""
    taught = group_with_turns([[(2, 1.0), (2, 0.0)], [(2, 0.0), (2, 0.0)]])
    taught = dataclasses.replace(taught, reward=taught.reward + torch.tensor([3.0, 0.0]).double())
    [made] = add_advantages([taught], "group", "none", turn_discount=1.0)
    assert of_turns(made) == [[2.0, 1.5], [-2.0, -1.5]]


def test_equal_totals_may_have_a_signal():
    taught = group_with_turns([[(2, 1.0), (2, 0.0)], [(2, 0.0), (2, 1.0)]])
    assert not has_signal(taught)
    assert has_signal(taught, turn_discount=1.0)
    assert not has_signal(group_with_turns([[(1, 1.0)], [(1, 1.0)]]), turn_discount=0.5)


def test_a_completion_without_a_reward_is_left_out():
    taught = group_with_turns([[(2, 1.0)], [(2, 0.0)], [(2, 5.0)]])
    taught = dataclasses.replace(taught, reward=torch.tensor([1.0, 0.0, NAN]).double())
    [made] = add_advantages([taught], "group", "none", turn_discount=1.0)
    assert of_turns(made) == [[0.5], [-0.5], [0.0]]
    assert not made.rollouts[2].trainable.any()


# --------------------------------------------------------------------------- rewards of tokens


STEPS = """
def steps(completion_ids):
    return [[1.0 if t == 1 else None for t in range(len(ids))] for ids in completion_ids]

def total(completions):
    return [2.0] * len(completions)

def short(completion_ids):
    return [[1.0] for ids in completion_ids]
"""


def test_a_function_may_give_each_token_a_reward(tmp_path):
    """The completion's is their sum, times the weight; together with the other function's it is the total."""
    (tmp_path / "r.py").write_text(STEPS)
    rewards = load(f"{tmp_path}/r.py:steps", f"{tmp_path}/r.py:total", weights=(0.5, 1.0))
    [scored] = score([group("abc", "de")], rewards)
    assert scored.rewards.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert scored.reward.tolist() == [2.5, 2.5]
    want = [[0.5 if t == 1 else NAN for t in range(len(r.completion_ids))] for r in scored.rollouts]
    assert [x.tolist() for x in scored.token_rewards] == [pytest.approx(row, nan_ok=True) for row in want]
    [back] = groups_from_tensors(groups_to_tensors([scored]), lambda position: scored.prompt)
    assert [x.tolist() for x in back.token_rewards] == [pytest.approx(row, nan_ok=True) for row in want]


def test_another_number_of_tokens_is_refused(tmp_path):
    (tmp_path / "r.py").write_text(STEPS)
    with pytest.raises(RewardError, match="or a list with a number or None for each of its 2 tokens"):
        score([group("ab", "cd")], load(f"{tmp_path}/r.py:short"))


def test_rewards_of_tokens_divide_a_completion_into_steps():
    """A reward at tokens 1 and 3 of five: two steps. The last has what is missing from the total, and the token behind it."""
    plain = group_of([4.0, 0.0], [5, 5])
    first = torch.tensor([NAN, 1.0, NAN, 2.0, NAN]).double()
    given = dataclasses.replace(plain, token_rewards=(first, torch.full((5,), NAN).double()))
    [made] = add_advantages([given], "group", "none", turn_discount=1.0)
    assert made.token_advantages[0].tolist() == [2.0, 2.0, 1.5, 1.5, 1.5]
    assert made.token_advantages[1].tolist() == [-2.0] * 5


def test_a_step_worth_nothing_is_a_step():
    """Rewards 1, 0, 1 and 0, 1, 1: the returns of the second step are 1 and 2, those of the first 2 and 2."""
    plain = group_of([2.0, 2.0], [3, 3])
    given = tuple(torch.tensor(x).double() for x in ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0]))
    [made] = add_advantages(
        [dataclasses.replace(plain, token_rewards=given)], "group", "none", turn_discount=1.0
    )
    assert [a.tolist() for a in made.token_advantages] == [[0.0, -0.5, 0.0], [0.0, 0.5, 0.0]]


def test_other_estimators_refuse_turns():
    for options in (("rloo",), ("group", "batch")):
        with pytest.raises(ValueError, match="compares turns as the estimator group does"):
            add_advantages([group_of([1.0, 0.0])], *options, turn_discount=1.0)
