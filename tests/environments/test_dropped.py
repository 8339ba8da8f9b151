"""Episodes that are dropped because their environment failed: they have no reward and weigh nothing, and a run counts them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from grpokit.batch.advantages import add_advantages
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.rewards import score
from grpokit.types import EpisodeFailed
from helpers import forked
from helpers.agents import WORLDS, config_of
from helpers.running import start, train


def fragile(tmp_path, **changes):
    return config_of(tmp_path, environment=(f"{WORLDS}:Fragile",), **changes)


def test_the_first_failure_ends_the_run_by_default(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(to_yaml(fragile(tmp_path)))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) != 0
    assert "Fragile.reset raised ConnectionError: no world" in " ".join(capsys.readouterr().err.split())
    assert 'raise ConnectionError("no world")' in (tmp_path / "run" / "error.txt").read_text()


def test_a_dropped_episode_leaves_its_groups_statistics(tmp_path):
    run = start(fragile(tmp_path, max_environment_errors=100, max_turn_length=30))
    groups = score(run.rollouts.sampler.sample(run.prompts.take(0, 4), 4), run.rewards)
    run.close()
    dropped = [[r.episode.error is not None for r in group.rollouts] for group in groups]
    assert sum(map(sum, dropped)) >= 4
    assert any(r.episode.error and len(r.completion_ids) == 0 for g in groups for r in g.rollouts)
    for group, lost in zip(add_advantages(groups), dropped, strict=True):
        kept = torch.tensor(lost).logical_not()
        assert group.reward.isnan().tolist() == lost
        rest = group.reward[kept]
        if len(rest) > 1 and rest.min() < rest.max():
            expected = (rest - rest.mean()) / (rest.std() + 1e-4)
            torch.testing.assert_close(group.advantages[kept], expected)
        assert not group.advantages[~kept].any()
        for rollout, is_lost in zip(group.rollouts, lost, strict=True):
            assert bool(rollout.trainable.any()) != is_lost
            assert (rollout.episode.ending == "error") == is_lost


@pytest.mark.parametrize(
    "changes", [{}, {"drop_dead_rows": False, "packing": "packed"}, {"share_prompts": "always"}]
)
def test_a_run_goes_on_without_them_and_reports_them(tmp_path, changes):
    run = start(fragile(tmp_path, max_environment_errors=100, log_completions=4, **changes))
    train(run)
    dropped = run.rollouts.budget.dropped
    run.close()
    assert dropped >= 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["endings/error"] > 0 for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert (
        "Fragile.reset raised ConnectionError: no world"
        in (tmp_path / "run" / "completions.jsonl").read_text()
    )


def test_the_count_goes_on_after_a_resume_and_over_ranks(tmp_path):
    run = start(fragile(tmp_path, max_environment_errors=100, save_steps=1))
    train(run)
    each = run.rollouts.budget.dropped
    run.close()
    assert each > 2
    first = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer" / "state.json").read_text())["dropped"]
    assert 0 < first < each
    resumed = fragile(
        tmp_path,
        max_environment_errors=each - 1,
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"),
        output_dir=str(tmp_path / "again"),
    )
    run = start(resumed)
    assert run.rollouts.budget.dropped == first
    with pytest.raises((EpisodeFailed, ValueError)):
        train(run)
    run.close()


@pytest.mark.slow
def test_two_ranks_share_one_count(tmp_path):
    run = start(fragile(tmp_path, max_environment_errors=100, max_steps=1))
    train(run)
    dropped = run.rollouts.budget.dropped
    run.close()
    for most, code in ((dropped, 0), (0, 2), (dropped - 1, 2)):
        config = fragile(
            tmp_path, max_environment_errors=most, max_steps=1, output_dir=str(tmp_path / str(most))
        )
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        done = forked.run("grpokit", "train", "--config", tmp_path / "run.yaml", ranks=2)
        assert done.returncode == code, done.stderr[-2000:]
        assert most or "Fragile.reset raised ConnectionError: no world" in " ".join(done.stderr.split())
    assert f"--max_environment_errors {dropped - 1}: {dropped} episodes have failed" in done.stderr


def test_a_task_that_fails_at_the_start_is_passed_over_where_errors_are_allowed(tmp_path, capsys):
    code = (
        "from grpokit.environments import Observation\nclass W:\n    made = 0\n    def reset(self, seed):\n"
        "        W.made += 1\n        if W.made == 1: raise OSError('not yet')\n        return 'hi'\n"
        "    def step(self, message) -> Observation: return Observation('x', reward=1.0, done=True)\n"
    )
    (tmp_path / "w.py").write_text(code)
    config = config_of(
        tmp_path, environment=(f"{tmp_path / 'w.py'}:W",), dataset="", max_environment_errors=9
    )
    start(config).close()
    assert "the longest of 7 tasks" in " ".join(capsys.readouterr().out.split())
