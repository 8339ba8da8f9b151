"""The step plan: weights before the cut; micro-batches that lose and repeat nothing."""

from __future__ import annotations

import pytest
import torch

from grpokit.batch.advantages import add_advantages
from grpokit.batch.collate import loss_batch, split_by_sample
from grpokit.batch.cuts import ATTENTION, PASS, cut_samples, deal
from grpokit.batch.plan import plan_step, plan_update
from grpokit.losses import make_loss
from grpokit.types import TokenScores
from helpers.running import micro_batches
from helpers.tiny import group_of

GROUPS = add_advantages(
    [group_of([0, 1, float("nan")], [2, 5, 4], 0), group_of([1, 0, 3], [1, 3, 6], 1)], "group", "none"
)


def test_weights_are_of_the_whole_update():
    update = plan_update(GROUPS, make_loss("dapo"))
    assert update.num_tokens == 2 + 5 + 1 + 3 + 6  # the completion without a reward isn't counted
    assert [row.weight for row in update.samples] == [1 / 17] * 5
    assert [row.index for row in update.samples] == [0, 1, 3, 4, 5]
    assert [row.group for row in update.samples] == [0, 0, 1, 1, 1]


def test_updates_are_whole_groups():
    updates = plan_step(GROUPS, make_loss("grpo"), 2)
    assert [len(u.samples) for u in updates] == [2, 3]
    assert [row.weight for row in updates[0].samples] == [1 / (2 * 2), 1 / (2 * 5)]


@pytest.mark.parametrize("budget", [1, 8, 13, 30, 1000])
def test_micro_batches_hold_each_token_once_within_the_budget(budget):
    rows = plan_update(GROUPS, make_loss("grpo")).samples
    micros = micro_batches(rows, budget)
    for micro in micros:
        assert micro.input_ids.numel() <= budget or len(micro.samples) == 1
    seen = sorted((int(s), int(p)) for m in micros for s, p in zip(m.sequence_ids, m.positions, strict=True))
    assert seen == sorted((row.index, t) for row in rows for t in range(len(row.completion_ids)))


def test_hidden_states_are_those_before_the_targets():
    rows = plan_update(GROUPS, make_loss("grpo")).samples
    for micro in micro_batches(rows, 20):
        assert torch.equal(micro.input_ids.flatten()[micro.at + 1], micro.targets)
        row, column = micro.at // micro.input_ids.shape[1], micro.at % micro.input_ids.shape[1]
        prompt = torch.tensor([len(row.prompt_ids) for row in micro.samples])
        assert torch.equal(column, prompt[row] + micro.positions - 1)


def test_masked_tokens_are_context_but_no_target():
    import dataclasses

    group = GROUPS[1]
    first = group.rollouts[2]
    holed = dataclasses.replace(first, trainable=torch.tensor([1, 0, 1, 1, 0, 1]).bool())
    groups = [dataclasses.replace(group, rollouts=(*group.rollouts[:2], holed))]
    update = plan_update(groups, make_loss("grpo"))
    assert update.num_tokens == 1 + 3 + 4
    (micro,) = micro_batches(update.samples[2:], 100)
    assert micro.positions.tolist() == [0, 2, 3, 5]
    assert micro.lengths.tolist() == [4] * 4
    assert micro.input_ids[0].tolist() == [1, 2, *first.completion_ids.tolist()]
    assert len(loss_batch(micro, TokenScores(torch.zeros(4))).logps) == 4


def test_split_rows_is_the_way_back():
    rows = plan_update(GROUPS, make_loss("grpo")).samples
    for micro in micro_batches(rows, 20):
        code = micro.sequence_ids * 100 + micro.positions
        for index, values in split_by_sample(micro, code).items():
            assert values.tolist() == [index * 100 + t for t in range(len(values))]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("budget", [1, 16, 1000])
def test_all_ranks_have_as_many_micro_batches_and_together_each_row_once(ranks, budget, packed):
    rows = plan_update(GROUPS, make_loss("grpo")).samples
    cuts = [micro_batches(rows, budget, packed=packed, rank=r, ranks=ranks) for r in range(ranks)]
    assert len({len(micros) for micros in cuts}) == 1
    assert sorted(row.index for micros in cuts for m in micros for row in m.samples) == [0, 1, 3, 4, 5]
    for rank, (micros, share) in enumerate(zip(cuts, deal(rows, ranks), strict=True)):
        assert {row.index for m in micros for row in m.samples} == {row.index for row in share}, rank
        for micro in micros:
            assert micro.input_ids.numel() >= 1  # also where it has no rows: a forward must be possible
            assert micro.input_ids.numel() <= budget or len(micro.samples) <= 1


def test_imbalance_is_the_busiest_ranks_work_over_the_mean():
    rows = plan_update(GROUPS, make_loss("grpo")).samples  # 4, 7, 3, 5, 8 tokens with their prompts
    tokens = [[8, 4], [7, 5, 3]]
    cost = [PASS + sum(n * (1 + n / ATTENTION) for n in share) for share in tokens]

    def imbalance(rows, ranks):
        return cut_samples(rows, 1000, packed=True, ranks=ranks).imbalance

    assert imbalance(rows, 2) == pytest.approx(max(cost) / (sum(cost) / 2))
    assert imbalance(rows, 1) == 1
    assert imbalance([], 4) == 1
    one = PASS + 4 * (1 + 4 / ATTENTION)  # the others make a forward of nothing meanwhile
    assert imbalance(rows[:1], 4) == pytest.approx(one / ((one + 3 * PASS) / 4))
