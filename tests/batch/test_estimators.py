"""Every advantage estimator against a slow loop over plain numbers, and properties over the whole table."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from grpokit.batch.advantages import add_advantages, has_signal
from grpokit.batch.estimators import ESTIMATORS
from grpokit.batch.plan import plan_update
from grpokit.config import advantage_rules
from grpokit.losses import make_loss
from grpokit.rollouts.gather import groups_from_tensors, groups_to_tensors
from grpokit.runs.tensors import updates_from_tensors, updates_to_tensors
from helpers.tiny import group_of

NAN = float("nan")


def mean(numbers):
    return math.fsum(numbers) / len(numbers)


def std(numbers):
    """The unbiased standard deviation."""
    middle = mean(numbers)
    return math.sqrt(math.fsum((x - middle) ** 2 for x in numbers) / (len(numbers) - 1))


def others(rewards, i):
    return rewards[:i] + rewards[i + 1 :]


def by_group(function):
    return lambda step, eps: [[0.0] * len(g["R"]) if len(set(g["R"])) < 2 else function(g, eps) for g in step]


def loo_std(g, eps):
    found = []
    for i, r in enumerate(g["R"]):
        d, rest = r - mean(others(g["R"], i)), others(g["R"], i)
        divided = len(rest) > 1 and len(set(rest)) > 1
        found.append(d / (std(rest) + eps) if divided else d)
    return found


def pass_k(g, eps):
    best, second = sorted(g["R"], reverse=True)[:2]
    return [(best - second) / (std(g["R"]) + eps) if r == best else 0.0 for r in g["R"]]


def over_step(rows, eps):
    """(a − mean) / (std + ε) over all numbers of the step."""
    flat = [a for row in rows for a in row]
    if len(set(flat)) < 2:
        return [[0.0] * len(row) for row in rows]
    return [[(a - mean(flat)) / (std(flat) + eps) for a in row] for row in rows]


def deviations(g, eps=0.0):
    return [r - mean(g["R"]) for r in g["R"]]


def gpg(step, eps):
    total = sum(len(g["R"]) for g in step)
    without = sum(len(g["R"]) for g in step if len(set(g["R"])) < 2)
    rows = by_group(deviations)(step, eps)
    return [[a * total / (total - without) if total > without else 0.0 for a in row] for row in rows]


def of_informative(step, eps):
    """reinforce_plus_plus: deviations over the step; groups without spread stay 0."""
    rows = by_group(deviations)(step, eps)
    scaled = over_step(rows, eps)
    return [s if any(row) else row for row, s in zip(rows, scaled, strict=True)]


def gdpo(step, eps):
    rows = []
    for g in step:
        total = [0.0] * len(g["R"])
        for f, weight in enumerate((1.0, 0.5)):
            r = [pair[f] for pair in g["r"]]
            if len(set(r)) > 1:
                total = [t + weight * (x - mean(r)) / (std(r) + eps) for t, x in zip(total, r, strict=True)]
        rows.append(total)
    scaled = over_step(rows, eps)
    return [s if any(row) else row for row, s in zip(rows, scaled, strict=True)]


ORACLES = {
    "group": by_group(lambda g, eps: [d / (std(g["R"]) + eps) for d in deviations(g)]),
    "rloo": by_group(lambda g, eps: [r - mean(others(g["R"], i)) for i, r in enumerate(g["R"])]),
    "reinforce_plus_plus": of_informative,
    "reinforce_plus_plus_global": lambda step, eps: over_step([g["R"] for g in step], eps),
    "opo": by_group(
        lambda g, eps: [
            r - math.fsum(t * x for t, x in zip(g["T"], g["R"], strict=True)) / sum(g["T"]) for r in g["R"]
        ]
    ),
    "gdpo": gdpo,
    "maxrl": by_group(lambda g, eps: [d / mean(g["R"]) for d in deviations(g)]),
    "remax": lambda step, eps: [[r - g["greedy"] for r in g["R"]] for g in step],
    "gpg": gpg,
    "loo_std": by_group(loo_std),
    "pass_k": by_group(pass_k),
}


def random_step(seed, groups=5, size=4):
    """Groups with two reward functions, and the same as plain numbers. The first has equal rewards."""
    draw = random.Random(seed)
    plain = []
    for number in range(groups):
        pairs = [[draw.randrange(5) / 4, draw.randrange(3) / 2] for _ in range(size)]
        pairs = [pairs[0]] * size if number == 0 else pairs
        lengths = [draw.randrange(1, 30) for _ in range(size)]
        rewards = [a + 0.5 * b for a, b in pairs]
        plain.append({"R": rewards, "r": pairs, "T": lengths, "greedy": draw.randrange(5) / 4})
    return [as_group(g, number) for number, g in enumerate(plain)], plain


def as_group(plain, position):
    group = group_of(plain["R"], plain["T"], position)
    rewards = torch.tensor(plain["r"], dtype=torch.float64)
    return dataclasses.replace(group, rewards=rewards, greedy_reward=torch.tensor(plain["greedy"]).double())


def found(groups, name, epsilon=1e-4):
    return [g.advantages.tolist() for g in add_advantages(groups, name, "group", (1.0, 0.5), epsilon=epsilon)]


def close(got, want):
    return [pytest.approx(row, rel=1e-11, abs=1e-12) for row in want] == got


def test_every_estimator_has_an_oracle():
    assert set(ORACLES) == set(ESTIMATORS)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-6, 0.5])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_slow_loop_gives_the_same(name, epsilon):
    for seed in range(30):
        groups, plain = random_step(seed, size=2 + seed % 5)
        assert close(found(groups, name, epsilon), ORACLES[name](plain, epsilon))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_order_of_groups_and_of_completions_changes_nothing(name):
    groups, plain = random_step(7)
    want = found(groups, name)
    backwards = [{k: v[::-1] if isinstance(v, list) else v for k, v in g.items()} for g in plain[::-1]]
    got = found([as_group(g, number) for number, g in enumerate(backwards)], name)
    assert close([row[::-1] for row in got[::-1]], want)


@pytest.mark.parametrize("name", [name for name, row in ESTIMATORS.items() if row.compares])
@pytest.mark.parametrize("rewards", [[0.1] * 8, [0.3] * 7, [5.0], [NAN, 2.0], [NAN, NAN]])
def test_a_group_without_spread_is_exactly_0(name, rewards):
    groups = [group_of(rewards), group_of([0.0, 1.0], position=1)]
    groups = [dataclasses.replace(g, rewards=g.rewards.expand(-1, 2)) for g in groups]
    assert found(groups, name)[0] == [0.0] * len(rewards)
    assert not has_signal(group_of(rewards), name)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_completion_without_a_reward_is_out_of_the_statistics(name):
    """With and without it, the others get the same; it gets 0, and isn't trained on."""
    groups, plain = random_step(3)
    fewer = [{k: v[:3] if isinstance(v, list) else v for k, v in g.items()} for g in plain]
    want = found([as_group(g, number) for number, g in enumerate(fewer)], name)
    missing = torch.tensor([False, False, False, True])
    holed = [
        dataclasses.replace(
            g,
            reward=torch.where(missing, NAN, g.reward),
            rewards=torch.where(missing[:, None], NAN, g.rewards),
        )
        for g in groups
    ]
    assert close(found(holed, name), [[*row, 0.0] for row in want])
    for group in add_advantages(holed, name):
        assert [bool(r.trainable.any()) for r in group.rollouts] == [True, True, True, False]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_group_has_a_signal_where_an_advantage_is_not_0(name):
    """Over the step alone, every group with a reward has one."""
    groups, _ = random_step(11)
    signals = [has_signal(group, name, (1.0, 0.5)) for group in groups]
    expected = [any(row) for row in found(groups, name)]
    assert signals == ([True] * len(groups) if ESTIMATORS[name].of_step else expected)
    assert ESTIMATORS[name].compares is not signals[0] or name == "remax"


@pytest.mark.parametrize("name", [name for name, row in ESTIMATORS.items() if row.compares])
@pytest.mark.parametrize("rewards", [[0.3, 0.1 + 0.2], [0.7, 0.1 * 7], [0.3, 0.1 + 0.2, 0.3]])
def test_rounding_error_is_no_spread(name, rewards):
    """.1 + .2 isn't .3 in floating point."""
    groups = [group_of(rewards), group_of([0.0, 1.0], position=1)]
    assert (
        max(
            map(
                abs, found([dataclasses.replace(g, rewards=g.rewards.expand(-1, 2)) for g in groups], name)[0]
            )
        )
        == 0
    )
    assert not has_signal(groups[0], name)


# --------------------------------------------------------------------------- what is particular to some


def test_maxrl_divides_by_the_mean_and_refuses_negative_rewards():
    """Rewards 0, 0, 0, 1: mean 1/4, so the right one counts four times its deviation."""
    assert found([group_of([0.0, 0.0, 0.0, 1.0])], "maxrl") == [[-1, -1, -1, 3]]
    for rewards in ([-1.0, 1.0], [-1.0, -1.0]):
        with pytest.raises(ValueError, match=r"maxrl: a completion of t.jsonl:1 has the reward -1"):
            found([group_of(rewards)], "maxrl")


def test_remax_learns_from_equal_rewards_and_needs_the_greedy_one():
    group = dataclasses.replace(group_of([1.0, 1.0]), greedy_reward=torch.tensor(0.25).double())
    assert found([group], "remax") == [[0.75, 0.75]]
    with pytest.raises(ValueError, match="no greedy_reward"):
        found([group_of([1.0, 1.0])], "remax")


def test_without_a_greedy_reward_a_group_is_not_trained_on():
    group = dataclasses.replace(group_of([1.0, 0.0]), greedy_reward=torch.tensor(NAN).double())
    [made] = add_advantages([group], "remax")
    assert made.advantages.tolist() == [0, 0]
    assert not any(rollout.trainable.any() for rollout in made.rollouts)
    assert not has_signal(group, "remax")


def test_gpg_counts_the_completions_of_groups_without_spread():
    """Of six completions two are in a group without spread: α = 6 / 4."""
    groups = [group_of([1.0, 1.0]), group_of([0.0, 1.0], position=1), group_of([0.0, 2.0], position=2)]
    assert found(groups, "gpg") == [[0, 0], [-0.75, 0.75], [-1.5, 1.5]]


def test_loo_std_is_undivided_where_the_others_are_equal():
    """1 among zeros: the others' std is 0 for it, and 1/√3 for each zero."""
    zero = -(1 / 3) / (1 / 3**0.5 + 1e-4)
    assert found([group_of([0.0, 0.0, 0.0, 1.0])], "loo_std") == [pytest.approx([zero] * 3 + [1.0])]
    assert found([group_of([0.0, 3.0])], "loo_std") == [[-3, 3]]


def test_loo_std_does_not_divide_by_rounding_error():
    """The others of the last are .3 up to rounding: its difference of .7 isn't divided."""
    assert found([group_of([0.3, 0.1 + 0.2, 0.3, 1.0])], "loo_std")[0][3] == pytest.approx(0.7)


def test_pass_k_gives_ties_nothing():
    assert found([group_of([0.0, 1.0, 1.0])], "pass_k") == [[0, 0, 0]]
    assert not has_signal(group_of([0.0, 1.0, 1.0]), "pass_k")
    best = (3 - 1) / (std([0, 0, 1, 3]) + 1e-4)
    assert found([group_of([0.0, 0.0, 1.0, 3.0])], "pass_k") == [pytest.approx([0, 0, 0, best])]


def test_epsilon_matters_where_rewards_hardly_differ():
    """A std of 7e-6: with 1e-4 the advantage is ±0.047, with verl's 1e-6 ±0.62."""
    rewards = [0.5, 0.50001]
    assert found([group_of(rewards)], "group")[0][1] == pytest.approx(0.047, abs=1e-3)
    assert found([group_of(rewards)], "group", 1e-6)[0][1] == pytest.approx(0.62, abs=1e-2)


def test_the_rules_know_every_estimator():
    of_group = {name for name, row in ESTIMATORS.items() if row.compares}
    assert set(advantage_rules.BY_GROUP) == of_group
    assert set(advantage_rules.WITHOUT_GROUP) == set(ESTIMATORS) - of_group
    groups, _ = random_step(5)
    divided = {name for name in ESTIMATORS if found(groups, name, 1e-4) != found(groups, name, 1e-2)}
    assert set(advantage_rules.SCALED) == divided


# --------------------------------------------------------------------------- an advantage for each token


def rising(rewards, rollouts):
    return [r * torch.linspace(0, 1, len(c.completion_ids)) for r, c in zip(rewards, rollouts, strict=True)]


def test_a_function_may_give_an_advantage_for_each_token():
    group = group_of([1.0, NAN, -2.0], [3, 4, 2])
    trainable = torch.tensor([True, False, True])
    first = dataclasses.replace(group.rollouts[0], trainable=trainable)
    group = dataclasses.replace(group, rollouts=(first, *group.rollouts[1:]))
    [made] = add_advantages([group], rising)
    assert [a.tolist() for a in made.token_advantages] == [[0, 0.5, 1], [0] * 4, [0, -2]]
    assert made.advantages.tolist() == [0.5, 0, -1]  # means over trainable tokens
    update = plan_update([made], make_loss("dapo"))
    assert [s.advantages.tolist() for s in update.samples] == [[0, 1], [0, -2]]
    assert has_signal(group, rising)


def test_advantages_of_tokens_survive_a_checkpoint_and_the_way_between_ranks():
    groups = add_advantages([group_of([1.0, -2.0], [3, 2]), group_of([1.0, 3.0], [1, 4], 1)], rising)
    back = groups_from_tensors(groups_to_tensors(groups), {g.prompt.position: g.prompt for g in groups}.get)
    for group, again in zip(groups, back, strict=True):
        pairs = zip(group.token_advantages, again.token_advantages, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    [none] = add_advantages([group_of([NAN, NAN], position=2)], rising)
    assert none.token_advantages is None
    for order in ([none, *groups], [*groups, none]):  # a group without any reward has none
        places = {g.prompt.position: g.prompt for g in order}
        again = groups_from_tensors(groups_to_tensors(order), places.get)
        assert [g.token_advantages is None for g in again] == [g is none for g in order]
    [update] = updates_from_tensors(updates_to_tensors([plan_update(groups, make_loss("dapo"))]))
    want = [s.advantages.tolist() for s in plan_update(groups, make_loss("dapo")).samples]
    assert [s.advantages.tolist() for s in update.samples] == want


@pytest.mark.parametrize("name", ["gspo", "luspo", "gmpo", "real"])
def test_losses_of_sequences_refuse_them(name):
    groups = add_advantages([group_of([1.0, -2.0])], rising)
    with pytest.raises(ValueError, match="gspo_token"):
        plan_update(groups, make_loss(name))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rewards, rollouts: [torch.ones(2) for _ in rollouts],
        lambda rewards, rollouts: [1.0, torch.ones(3)],
        lambda rewards, rollouts: [torch.full((3,), NAN) for _ in rollouts],
        lambda rewards, rollouts: torch.ones(1),
    ],
    ids=["too few", "mixed", "no numbers", "one alone"],
)
def test_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"returned .* expected 2 finite numbers"):
        add_advantages([group_of([1.0, 0.0])], wrong)
