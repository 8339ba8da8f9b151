"""Dynamic sampling and overlong filtering: which completions of a step are learned from."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from grpokit.batch.advantages import add_advantages, has_signal, mask_truncated
from grpokit.batch.plan import plan_update
from grpokit.config.options import TrainConfig
from grpokit.losses import make_loss
from grpokit.rollouts.resample import StepGroups
from grpokit.runs.metrics import is_of_machine
from grpokit.training.setup.parts import Parts, find_filter
from grpokit.types import Prompt
from helpers.running import start, train
from helpers.tiny import group_of, tiny_config


def source(flat):
    """prompts_from and complete over positions, of which those in `flat` give groups without spread; and what was asked."""
    asked = []

    def complete(positions):
        asked.append(list(positions))
        return [group_of([1.0, 1.0] if p in flat else [0.0, 1.0], position=p) for p in positions]

    return (lambda start, count: list(range(start, start + count))), complete, asked


def resample(prompts_from, complete, step, size, max_resample_times, weights, estimator="group"):
    """The rounds of a step, as the loop makes them."""
    keeps = partial(has_signal, estimator=estimator, weights=weights)
    chosen = StepGroups(step, size, max_resample_times, keeps)
    while chosen.missing:
        chosen.add(complete(prompts_from(chosen.position, chosen.missing)), {})
    return chosen.groups, chosen.metrics


def test_without_it_groups_come_as_they_are():
    prompts_from, complete, asked = source(flat={4, 5})
    groups, metrics = resample(prompts_from, complete, step=1, size=4, max_resample_times=0, weights=[1.0])
    assert [g.prompt.position for g in groups] == [4, 5, 6, 7]
    assert asked == [[4, 5, 6, 7]]
    assert metrics == {}


def test_groups_without_spread_make_way():
    prompts_from, complete, asked = source(flat={12, 14, 16})
    groups, metrics = resample(prompts_from, complete, step=1, size=4, max_resample_times=2, weights=[1.0])
    assert asked == [[12, 13, 14, 15], [16, 17], [20]]  # each round has its own stretch of the order
    assert [g.prompt.position for g in groups] == [13, 15, 17, 20]
    assert metrics["resampled_groups"].value == 3


def test_what_is_missing_at_the_end_is_filled_up():
    prompts_from, complete, _ = source(flat=set(range(100)))
    groups, metrics = resample(prompts_from, complete, step=0, size=4, max_resample_times=2, weights=[1.0])
    assert [g.prompt.position for g in groups] == [0, 1, 2, 3]
    assert metrics["resampled_groups"].value == 8


def test_a_reward_that_does_not_apply_is_no_spread():
    def complete(prompts):
        return [group_of([float("nan"), 1.0, 1.0]), group_of([float("nan"), 0.0, 1.0], position=1)]

    groups, metrics = resample(
        lambda start, count: [], complete, step=0, size=1, max_resample_times=1, weights=[1.0]
    )
    assert [g.prompt.position for g in groups] == [1]
    assert metrics["resampled_groups"].value == 1


def opposite_rewards():
    """Two functions that differ, and totals that are equal."""
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    return replace(group_of([1.0, 1.0]), rewards=rewards)


def rounded_totals():
    """Rows (1, 1, 0) and (0, 0, 1) under the weights 0.1, 0.2, 0.3: totals that differ by rounding alone."""
    rewards = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return replace(group_of([0.1 + 0.2, 0.3]), rewards=rewards)


@pytest.mark.parametrize("estimator", ["group", "rloo", "reinforce_plus_plus", "opo"])
@pytest.mark.parametrize(
    ("group", "weights"), [(opposite_rewards(), [1.0, 1.0]), (rounded_totals(), [0.1, 0.2, 0.3])]
)
def test_groups_of_equal_totals_make_way_where_the_estimator_sees_totals(estimator, group, weights):
    _, metrics = resample(lambda s, n: [], lambda p: [group], 0, 1, 1, weights, estimator)
    assert metrics["resampled_groups"].value == 1
    (advised,) = add_advantages([group], estimator, "group", weights)
    assert not advised.advantages.any()


@pytest.mark.parametrize(
    ("weights", "in_vain"),
    [([1.0, 1.0], 0), ([0.0, 0.0], 1), ([0.5, 0.0], 0)],  # a function without weight only watches
)
def test_gdpo_keeps_groups_in_which_any_function_differs(weights, in_vain):
    options = {"step": 0, "size": 1, "max_resample_times": 1, "weights": weights, "estimator": "gdpo"}
    _, metrics = resample(lambda s, n: [], lambda p: [opposite_rewards()], **options)
    assert metrics["resampled_groups"].value == in_vain


def test_an_estimator_of_the_users_decides_which_groups_teach():
    def absolute(rewards):
        return rewards - 0.5

    _, metrics = resample(lambda s, n: [], lambda p: [group_of([1.0, 1.0])], 0, 1, 1, [1.0], absolute)
    assert metrics["resampled_groups"].value == 0
    _, metrics = resample(lambda s, n: [], lambda p: [group_of([0.5, 0.5])], 0, 1, 1, [1.0], absolute)
    assert metrics["resampled_groups"].value == 1


def test_a_filter_that_edits_its_group_edits_a_copy():
    def edits(group):
        group.prompt.columns.pop("answer")
        group.reward.zero_()
        return True

    group = replace(group_of([0.0, 1.0]), prompt=Prompt(0, (1,), "p", {"answer": "1"}, "t.jsonl:1"))
    assert find_filter(TrainConfig(), Parts(group_filter=edits))(group)
    assert group.prompt.columns == {"answer": "1"}
    assert group.reward.tolist() == [0.0, 1.0]


def test_truncated_completions_leave_the_loss_and_its_denominators_but_not_the_baseline():
    group = group_of([0.0, 1.0, 5.0], [2, 3, 4])
    cut = replace(group.rollouts[2], finish_reason="length")
    (group,) = add_advantages([replace(group, rollouts=(*group.rollouts[:2], cut))], "group", "none")
    (masked,) = mask_truncated([group])
    assert torch.equal(masked.advantages, torch.tensor([-2.0, -1.0, 3.0], dtype=torch.float64))
    update = plan_update([masked], make_loss("dapo"))
    assert [row.index for row in update.samples] == [0, 1]
    assert update.num_tokens == 5
    assert [row.weight for row in update.samples] == [pytest.approx(1 / 5)] * 2
    assert [row.weight for row in plan_update([masked], make_loss("grpo")).samples] == [
        1 / (2 * 2),
        1 / (2 * 3),
    ]


def coarse(completions):
    """Equal within many groups of the tiny model, and not within others."""
    return [float(len(c) > 4) for c in completions]


def test_a_run_resumes_with_both_to_the_byte(tmp_path):
    ends = []
    for name, stops in (("whole", (4,)), ("twice", (2, 4))):
        for max_steps in stops:
            config = tiny_config(
                tmp_path,
                output_dir=str(tmp_path / name),
                reward_funcs=(f"{__file__}:coarse",),
                num_generations=2,
                max_resample_times=2,
                mask_truncated_completions=True,
                max_steps=max_steps,
                save_steps=2,
                resume_from_checkpoint="auto" if max_steps > stops[0] else "",
            )
            run = start(config)
            train(run)
            run.close()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if not is_of_machine(k)} for line in lines]
        ends.append((rows, (tmp_path / name / "final" / "model.safetensors").read_bytes()))
    assert ends[0] == ends[1]
    assert sum(row["resampled_groups"] for row in ends[0][0]) > 0
    assert any(row["completions/clipped_ratio"] > 0 for row in ends[0][0])
