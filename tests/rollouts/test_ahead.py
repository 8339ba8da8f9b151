"""Sampling one step ahead: which weights sample when, what waits for what, and the options."""

from __future__ import annotations

import threading
import time

import pytest

import grpokit.training.loop
import grpokit.training.setup.start
from grpokit.commands.cli import main
from grpokit.config.checks import check_train_config
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import from_yaml
from grpokit.losses.lint import correction_note
from grpokit.rollouts.ahead import SampleAhead
from grpokit.training import scoring as scoring_room
from grpokit.training.setup.loss import loss_from_config
from helpers.elsewhere import wait_until
from helpers.elsewhere_runs import command_for, metrics_of
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("engine")

# --------------------------------------------------------------------------- the order of things


def test_each_step_is_sampled_by_the_weights_that_the_step_before_began_with(engine, tmp_path):
    assert main([*command_for(tmp_path, max_steps=3), str(tmp_path / "run")]) == 0
    assert engine.diary == [
        ("loads", 0),
        ("begins", 0, [0, 1], "now"),
        ("ends", 0, [0, 1], "now"),
        ("begins", 0, [2, 3], "ahead"),
        ("ends", 0, [2, 3], "ahead"),
        ("loads", 1),
        ("begins", 1, [4, 5], "ahead"),
        ("ends", 1, [4, 5], "ahead"),
        ("loads", 2),  # and nothing is sampled for a step that will not be
        ("loads", 3),
    ]
    metrics = rows(tmp_path / "run", "metrics.jsonl")
    assert [row["sampler/staleness"] for row in metrics] == [0, 1, 1]
    assert [row["sampler/logp_diff_max"] > 1e-6 for row in metrics] == [False, True, True]
    assert all(0 < row["sampler/ess"] <= 1 + 1e-12 for row in metrics)


def test_staleness_counts_optimizer_steps(tmp_path):
    assert main([*command_for(tmp_path, updates_per_step=2, num_iterations=2), str(tmp_path / "run")]) == 0
    assert [row["sampler/staleness"] for row in rows(tmp_path / "run", "metrics.jsonl")] == [0, 4, 4, 4]


def test_depth_0_says_nothing_of_staleness_and_starts_no_thread(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(SampleAhead, "__init__", lambda *_: pytest.fail("at depth 0"))
    assert main([*command_for(tmp_path, async_depth=0), str(tmp_path / "run")]) == 0
    assert {entry[3] for entry in engine.diary if len(entry) > 2} == {"now"}
    assert "sampler/staleness" not in rows(tmp_path / "run", "metrics.jsonl")[0]


def test_it_samples_while_the_step_is_scored_and_learned_from(engine, tmp_path, monkeypatch):
    """The engine begins before the rewards, and is held until the step has been learned from."""
    learned = threading.Event()
    learn, scored = grpokit.training.loop.learn, scoring_room.score_groups

    def scoring(run, *arguments, **named):
        if run.state.step < 2:  # beside the last step nothing is sampled
            wait_until(lambda: engine.diary[-1][0] == "begins" and engine.diary[-1][3] == "ahead")
        return scored(run, *arguments, **named)

    def learning(*arguments):
        found = learn(*arguments)
        learned.set()
        return found

    def until_learned(sampler, background):
        if background:
            assert learned.wait(60)
            learned.clear()

    monkeypatch.setattr(scoring_room, "score_groups", scoring)
    monkeypatch.setattr(grpokit.training.loop, "learn", learning)
    engine.before.append(until_learned)
    assert main([*command_for(tmp_path, max_steps=3), str(tmp_path / "run")]) == 0


def test_weights_and_everything_else_wait_for_what_is_under_way(engine, tmp_path):
    """A slow engine: no load, no evaluation and no further round begins before it ends."""
    engine.before.append(lambda sampler, background: time.sleep(0.3 * background))
    held_out = {"eval_dataset": str(tmp_path / "train.jsonl"), "eval_steps": 1, "eval_samples": 2}
    command = command_for(tmp_path, max_resample_times=2, num_generations=2, **held_out)
    assert main([*command, str(tmp_path / "run")]) == 0
    under_way = False
    for what, *_ in engine.diary:
        assert (what == "ends") == under_way, engine.diary
        under_way = what == "begins"
    ahead = [entry for entry in engine.diary if entry[0] == "begins" and entry[3] == "ahead"]
    assert [entry[1:3] for entry in ahead] == [(0, [6, 7]), (1, [12, 13]), (2, [18, 19])]
    assert min(row["time/rollout"] for row in metrics_of(tmp_path / "run")[:-1]) > 0.1


def test_later_rounds_of_dynamic_sampling_are_sampled_by_the_present_weights(engine, tmp_path):
    """A reward that is equal for all in each first round: later rounds are at need, and the next step is begun after them."""
    command = command_for(
        tmp_path, max_resample_times=1, max_steps=3, reward_funcs=(f"{REWARDS}:equal_every_other_time",)
    )
    assert main([*command, str(tmp_path / "run")]) == 0
    begun = [entry[1:] for entry in engine.diary if entry[0] == "begins"]
    assert begun == [
        (0, [0, 1], "now"),
        (0, [2, 3], "now"),
        (0, [4, 5], "ahead"),
        (1, [6, 7], "now"),
        (1, [8, 9], "ahead"),
        (2, [10, 11], "now"),
    ]
    # All of a step's groups come from its second round, which is not stale.
    assert [row["sampler/staleness"] for row in metrics_of(tmp_path / "run")] == [0, 0, 0]


# --------------------------------------------------------------------------- the options


def test_it_needs_an_engine_that_samples_meanwhile(tmp_path):
    config = tiny_config(tmp_path, async_depth=1)
    with pytest.raises(ValueError, match=r"--async_depth 1: needs an engine .* add --sampler vllm"):
        check_train_config(config)
    check_train_config(tiny_config(tmp_path, async_depth=1, sampler="vllm"))


@pytest.mark.parametrize("value", ["2", "true", "one"])
def test_another_depth_is_refused(value):
    with pytest.raises(ValueError, match=r"async_depth: .* is not one of 0, 1"):
        from_yaml(TrainConfig, f"async_depth: {value}", "x.yaml")


@pytest.mark.parametrize(
    ("options", "mode", "note"),
    [
        ({}, "truncate", "correction_mode truncate, correction_level token, correction_cap 2: the default"),
        ({"correction_cap": 3.0}, "truncate", "correction_cap 3: the default"),
        ({"correction_mode": "truncate"}, "truncate", None),
        ({"correction_mode": "mask"}, "mask", None),
        ({"correction_mode": "none"}, None, "correction_mode none: nothing corrects"),
        ({"loss_type": "vespo"}, "truncate", "correction_mode truncate"),
        ({"loss_type": "dppo_tv"}, None, "the ratio of dppo_tv is to their sampler already"),
        ({"loss_type": "dppo_kl"}, None, "the ratio of dppo_kl is to their sampler already"),
        ({"surrogate": "dppo_tv"}, None, "to their sampler already"),
        ({"async_depth": 0}, None, None),
        ({"async_depth": 0, "correction_mode": "none"}, None, None),
    ],
)
def test_a_step_ahead_corrects_by_default(options, mode, note):
    config = TrainConfig(**({"loss_type": "dapo", "sampler": "vllm", "async_depth": 1} | options))
    loss = loss_from_config(config)
    assert (None if loss.correction is None else loss.correction.mode) == mode
    said = correction_note(loss, config.async_depth, config.correction_mode)
    assert (said is None) if note is None else (note in said)


def test_options_of_the_other_mode_name_what_they_need():
    for options in ({"correction_high": 4.0}, {"rejected_tokens": "drop"}):
        with pytest.raises(ValueError, match=f"--{next(iter(options))}"):
            loss_from_config(TrainConfig(sampler="vllm", async_depth=1, **options))


def test_remax_one_step_ahead_asks_for_the_greedy_completions_before_the_next_step(engine, tmp_path):
    """So the engine is free; the run goes on from a checkpoint to the same bytes."""
    command = command_for(tmp_path, advantage_estimator="remax", save_steps=1)
    assert main([*command, str(tmp_path / "expected")]) == 0
    assert [entry[3] for entry in engine.diary if entry[0] == "begins"] == [
        "now",
        "now",
        *(["ahead", "now"] * 3),
    ]
    older = ["--resume_from_checkpoint", str(tmp_path / "expected" / "checkpoint-2")]
    assert main([*command, str(tmp_path / "run"), *older]) == 0
    ours, theirs = ((tmp_path / r / "final" / "model.safetensors").read_bytes() for r in ("run", "expected"))
    assert ours == theirs
    assert all("reward/greedy" in row for row in metrics_of(tmp_path / "run"))
