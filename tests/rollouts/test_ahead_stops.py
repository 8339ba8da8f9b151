"""Sampling one step ahead: a stop, an error, a resume or another number of ranks loses nothing."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import grpokit.training.loop
import grpokit.training.setup.start
from grpokit.commands.cli import main
from grpokit.parallel import World
from grpokit.rollouts.ahead import SampleAhead
from grpokit.rollouts.gather import groups_from_tensors, groups_to_tensors
from grpokit.runs.checkpoint import checkpoints, read_record, verify
from grpokit.runs.directory import OF_ROLLOUTS
from grpokit.training import scoring
from helpers import forked
from helpers.elsewhere import Watch, wait_until
from helpers.elsewhere_runs import command_for
from helpers.launch import rows
from helpers.stops import STOPPED, in_update, same_bytes, stop_when
from helpers.tiny import group_of

pytestmark = pytest.mark.usefixtures("engine")

# --------------------------------------------------------------------------- stops, errors, resume


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing happens to, with a checkpoint after each step."""
    directory = tmp_path_factory.mktemp("ahead")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpokit.training.setup.start, "sampler_factory", Watch().samplers)
        assert main([*command_for(directory, save_steps=1), str(directory / "undisturbed")]) == 0
    return directory


def resume(undisturbed: Path, run: Path, *more: str) -> int:
    command = ["train", "--config", str(undisturbed / "run.yaml"), "--output_dir", str(run)]
    return main([*command, "--resume_from_checkpoint", "auto", *more])


def copied(undisturbed: Path, run: Path, *steps: int) -> Path:
    """The run's directory as it was after the last of `steps`, checkpoints of `steps` only."""
    shutil.copytree(undisturbed / "undisturbed", run)
    for path in [*checkpoints(run), run / "final"]:
        if path.name not in {f"checkpoint-{step}" for step in steps}:
            shutil.rmtree(path)
    return run


@pytest.mark.parametrize("step", [1, 3])
def test_a_checkpoint_between_two_steps_has_the_next_ones_rollouts(engine, undisturbed, tmp_path, step):
    run = copied(undisturbed, tmp_path / "run", step)
    (checkpoint,) = checkpoints(run)
    verify(checkpoint)
    assert "trainer/ahead.safetensors" in read_record(checkpoint)["files"]
    saved = load_file(checkpoint / "trainer" / "ahead.safetensors")
    assert saved["position"].tolist() == [2 * step, 2 * step + 1]
    assert set(saved["policy_version"].tolist()) == {step - 1}
    assert "reward" not in saved
    assert resume(undisturbed, run) == 0
    assert not [entry for entry in engine.diary if entry[0] == "begins" and entry[2][0] <= 2 * step]
    same_bytes(run, undisturbed / "undisturbed")


def test_the_last_checkpoint_has_none_and_more_steps_begin_with_the_present_weights(undisturbed, tmp_path):
    run = copied(undisturbed, tmp_path / "run", 4)
    assert "trainer/ahead.safetensors" not in read_record(run / "checkpoint-4")["files"]
    assert resume(undisturbed, run, "--max_steps", "6") == 0
    assert [row["sampler/staleness"] for row in rows(run, "metrics.jsonl")] == [0, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    "change",
    [
        ("--temperature", "0.7"),
        ("--num_generations", "3"),
        ("--max_completion_length", "5"),
        ("--min_completion_length", "2"),
    ],
)
def test_rollouts_of_other_options_are_sampled_anew(engine, undisturbed, tmp_path, capsys, change):
    run = copied(undisturbed, tmp_path / "run", 2)
    assert resume(undisturbed, run, *change) == 0
    assert (
        "the checkpoint's rollouts for the next step are discarded and resampled" in capsys.readouterr().out
    )
    assert engine.diary[:2] == [("loads", 2), ("begins", 2, [4, 5], "now")]
    assert [row["sampler/staleness"] for row in rows(run, "metrics.jsonl")] == [0, 1, 0, 1]


def test_every_option_that_decides_about_rollouts_is_listed():
    """Every option that says how a completion is sampled, so that none is forgotten here when one is added."""
    known = (
        "sampler async_depth temperature top_p top_k min_p repetition_penalty stop "
        "max_completion_length min_completion_length num_generations "
        "tools environment max_turns max_turn_length tool_parser tool_timeout max_tool_output"
    )
    assert set(known.split()) == OF_ROLLOUTS


def test_depth_0_goes_on_without_them(engine, undisturbed, tmp_path, capsys):
    run = copied(undisturbed, tmp_path / "run", 2)
    assert resume(undisturbed, run, "--async_depth", "0", "--correction_mode", "truncate") == 0
    said = capsys.readouterr().out
    assert "changed since: async_depth: 1 → 0" in said
    assert "discarded and resampled" in said
    assert {entry[3] for entry in engine.diary if len(entry) > 2} == {"now"}


def test_a_stop_between_two_steps_is_resumed_to_the_byte(undisturbed, tmp_path, monkeypatch):
    """The rollouts were given out already, and the step has not begun: they are saved."""
    stop_when(monkeypatch, lambda run, progress: run.state.step == 2 and progress is None)
    run = tmp_path / "run"
    assert resume(undisturbed, run, "--save_steps", "0") == STOPPED
    monkeypatch.undo()
    monkeypatch.setattr(grpokit.training.setup.start, "sampler_factory", Watch().samplers)
    (checkpoint,) = checkpoints(run)
    assert checkpoint.name == "checkpoint-2"
    assert (checkpoint / "trainer" / "ahead.safetensors").is_file()
    assert resume(undisturbed, run) == 0
    same_bytes(run, undisturbed / "undisturbed")


def test_a_reward_that_fails_loses_no_rollouts(undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "score_groups", fails_at(scoring.score_groups, 3))
    run = tmp_path / "run"
    assert resume(undisturbed, run, "--save_steps", "0") == 2
    monkeypatch.undo()
    monkeypatch.setattr(grpokit.training.setup.start, "sampler_factory", Watch().samplers)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]
    assert resume(undisturbed, run) == 0
    same_bytes(run, undisturbed / "undisturbed")


def fails_at(function, call: int):
    calls = [0]

    def failing(*arguments, **named):
        calls[0] += 1
        if calls[0] == call:
            raise ValueError("the third time")
        return function(*arguments, **named)

    return failing


def test_a_stop_in_the_midst_of_a_step_ends_the_sampling_and_samples_again(
    engine, undisturbed, tmp_path, monkeypatch
):
    """Before the step's update the weights are still those that sampled, so the bytes are the same too."""
    stop_when(monkeypatch, in_update(0, step=1))
    engine.before.append(until_stopped(engine))
    run = tmp_path / "run"
    assert resume(undisturbed, run) == STOPPED
    monkeypatch.undo()
    monkeypatch.setattr(grpokit.training.setup.start, "sampler_factory", Watch().samplers)
    engine.before.clear()
    assert checkpoints(run)[-1].name == "checkpoint-1-update-0"
    assert not (checkpoints(run)[-1] / "trainer" / "ahead.safetensors").exists()
    assert resume(undisturbed, run) == 0
    same_bytes(run, undisturbed / "undisturbed")


def until_stopped(engine: Watch):
    """The engine takes forever over step 3 (the positions from 4 on), unless it is told to stop."""

    def waiting(sampler, background):
        if background and engine.diary[-1][2][0] == 4:
            wait_until(sampler.stopped)

    return waiting


def test_a_stop_while_the_run_waits_at_a_steps_end(engine, undisturbed, tmp_path, monkeypatch):
    """The sampling under way is lost; the step's updates are not, and the next one begins with the present weights."""
    wait = SampleAhead.wait

    def stopped_meanwhile(ahead):
        if engine.diary[-1][0] == "begins" and engine.diary[-1][2][0] == 4:
            signal.raise_signal(signal.SIGTERM)
        wait(ahead)

    monkeypatch.setattr(SampleAhead, "wait", stopped_meanwhile)
    engine.before.append(until_stopped(engine))
    run = tmp_path / "run"
    assert resume(undisturbed, run) == STOPPED
    monkeypatch.undo()
    monkeypatch.setattr(grpokit.training.setup.start, "sampler_factory", Watch().samplers)
    engine.before.clear()
    assert checkpoints(run)[-1].name == "checkpoint-2"
    assert not (checkpoints(run)[-1] / "trainer" / "ahead.safetensors").exists()
    assert resume(undisturbed, run) == 0
    assert [row["sampler/staleness"] for row in rows(run, "metrics.jsonl")] == [0, 1, 0, 1]


def test_another_error_ends_the_sampling_too(engine, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(grpokit.training.loop, "learn", fails_at(grpokit.training.loop.learn, 2))
    engine.before.append(until_stopped(engine))
    began = time.monotonic()
    assert resume(undisturbed, tmp_path / "run") == 2
    assert time.monotonic() - began < 30  # not the engine's patience


def test_an_error_of_the_engine_is_the_runs_at_the_next_wait(engine, undisturbed, tmp_path, capsys):
    """The same message, code and checkpoint as where the main thread samples."""

    def gone(sampler, background):
        if background and engine.diary[-1][2][0] == 4:
            raise ValueError("--vllm_timeout 3: the server did not serve train.jsonl:4, generation 2")

    engine.before.append(gone)
    run = tmp_path / "run"
    assert resume(undisturbed, run) == 2
    assert "error: --vllm_timeout 3: the server did not serve train.jsonl:4" in capsys.readouterr().err
    assert "Traceback" in (run / "error.txt").read_text()
    assert checkpoints(run)[-1].name == "checkpoint-1-update-1"
    engine.before.clear()
    assert resume(undisturbed, run) == 0
    assert [row["step"] for row in rows(run, "metrics.jsonl")] == [1, 2, 3, 4]


def test_nothing_else_is_asked_for_while_the_engine_is_under_way():
    order = []

    class Slow:
        def work(self):
            time.sleep(0.3)
            order.append("came")

        def groups(self):
            return []

    class Sampler:
        def start(self, *_):
            return Slow()

        def sample(self, *_, greedy=False):
            order.append("asked")

        def sync(self):
            order.append("synced")

    ahead = SampleAhead(Sampler())
    ahead.begin([], 2)
    ahead.begin([], 2)  # once is enough
    ahead.sample([], 2)
    ahead.sync()
    ahead.begin([], 2)
    ahead.sync()
    assert order == ["came", "asked", "synced", "came", "synced"]


def test_what_another_rank_has_lost_is_lost_here_too():
    """Else one rank would train on what came, and another would ask the engine."""

    class Come:
        def work(self): ...
        def groups(self):
            return [group_of([0.0, 1.0])]

    class Sampler:
        def start(self, *_):
            return Come()

    class Others(World):
        lost = False

        def any(self, flag: bool) -> bool:
            return flag or self.lost

    for lost in (False, True):
        world = Others()
        object.__setattr__(world, "lost", lost)
        ahead = SampleAhead(Sampler(), world)
        ahead.begin([], 2)
        ahead.wait()
        assert (ahead.ready is None) == lost


def test_groups_that_are_not_scored_survive_the_way_to_disk():
    group = group_of([0.0, 1.0], [2, 3], position=5)
    rollouts = tuple(
        replace(r, entropies=torch.full_like(r.entropies, torch.nan), policy_version=3)
        for r in group.rollouts
    )
    unscored = type(group)(group.prompt, rollouts)
    (back,) = groups_from_tensors(groups_to_tensors([unscored]), {5: group.prompt}.__getitem__)
    assert (back.rewards, back.reward, back.advantages) == (None, None, None)
    for ours, theirs in zip(back.rollouts, rollouts, strict=True):
        assert ours.completion_ids.tolist() == theirs.completion_ids.tolist()
        assert ours.logps.tolist() == theirs.logps.tolist()
        assert ours.entropies.isnan().all()
        assert (ours.policy_version, ours.finish_reason, ours.text) == (3, theirs.finish_reason, theirs.text)


# --------------------------------------------------------------------------- ranks


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_on_the_same_rollouts_and_resume_on_another_number(undisturbed, tmp_path, ranks):
    """Three ranks: one has no prompt of the two."""
    script = ("helpers.elsewhere", undisturbed / "run.yaml")
    done = forked.run(*script, tmp_path / "run", ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = undisturbed / "undisturbed"
    close_to(tmp_path / "run", expected)
    one = copied(undisturbed, tmp_path / "again", 2)
    done = forked.run(*script, one, one / "checkpoint-2", ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    close_to(one, expected)
    for path in [*checkpoints(tmp_path / "run"), tmp_path / "run" / "final"]:
        if path.name != "checkpoint-2":
            shutil.rmtree(path)
    assert resume(undisturbed, tmp_path / "run") == 0  # by one process, from what the ranks have saved
    close_to(tmp_path / "run", expected)


def close_to(run: Path, expected: Path) -> None:
    for ours, theirs in zip(rows(run, "completions.jsonl"), rows(expected, "completions.jsonl"), strict=True):
        assert ours["completions"] == theirs["completions"]
    ours, theirs = rows(run, "metrics.jsonl"), rows(expected, "metrics.jsonl")
    assert [row["sampler/staleness"] for row in ours] == [row["sampler/staleness"] for row in theirs]
    ours, theirs = (load_file(r / "final" / "model.safetensors") for r in (run, expected))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-10)


def test_the_start_says_the_default(undisturbed, tmp_path, capsys):
    assert resume(undisturbed, tmp_path / "run", "--max_steps", "1") == 0
    assert "note: correction_mode truncate, correction_level token" in capsys.readouterr().out
