"""The runs of a comparison: in order, side by side, failed, stopped, killed, resumed; and paired seeds share their noise."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from grpokit.commands.cli import main
from grpokit.commands.compare import jobs
from grpokit.commands.compare.jobs import gpus, train_runs
from grpokit.commands.compare.plan import Plan, last_step, make_plan
from grpokit.commands.compare.variants import grid
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from helpers.launch import ENVIRONMENT, rows
from helpers.running import start, train
from helpers.tiny import tiny_config


@pytest.fixture
def quick(monkeypatch):
    """Runs are helpers/quick_training.py."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    monkeypatch.setattr(
        jobs, "command_of", lambda file: [sys.executable, "-m", "helpers.quick_training", str(file)]
    )


def plan_of(output, *rates: float, seeds: int = 2) -> Plan:
    base = TrainConfig(model="m", dataset=("d",), max_steps=2)
    return make_plan(base, grid([f"learning_rate={','.join(map(str, rates))}"], base), seeds, output)


def times_of(plan: Plan) -> dict[str, int]:
    """Run → when it began, in nanoseconds."""
    return {run.name: (run.directory / "config.yaml").stat().st_mtime_ns for run in plan.runs()}


def test_runs_are_made_seed_by_seed_and_a_finished_one_is_not_made_again(tmp_path, quick):
    plan = plan_of(tmp_path / "c", 0.1, 0.2)
    plan.save()
    assert train_runs(plan.runs(), 1, plan.output).failed == ()
    began = times_of(plan)
    assert list(began) == sorted(began, key=began.__getitem__)
    assert all(run.is_finished() for run in plan.runs())
    wider = plan_of(tmp_path / "c", 0.1, 0.2, seeds=3)
    train_runs(wider.runs(), 1, wider.output)
    assert {name: at for name, at in times_of(wider).items() if name in began} == began
    assert all(run.is_finished() for run in wider.runs())


def test_several_jobs_share_the_cores(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    plan = plan_of(tmp_path / "c", 0.1, 0.2, 0.3, seeds=1)
    train_runs(plan.runs(), 3, plan.output)
    assert all("with 2 threads" in run.log.read_text() for run in plan.runs())


def test_jobs_get_a_gpu_each_where_there_are_enough(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert gpus() == ["3", "5"]
    assert [slot.device for slot in jobs._slots(2)] == ["3", "5"]
    assert [slot.device for slot in jobs._slots(3)] == [None] * 3
    assert [slot.device for slot in jobs._slots(1)] == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == []


def test_a_failed_run_is_reported_with_its_error_and_the_others_go_on(tmp_path, quick, capsys):
    plan = plan_of(tmp_path / "c", 0.1, 2.0)
    ended = train_runs(plan.runs(), 1, plan.output)
    assert ended.failed == (
        "2.0, seed 42: error: --learning_rate: is above 1",
        "2.0, seed 43: error: --learning_rate: is above 1",
    )
    assert [run.is_finished() for run in plan.runs()] == [True, False, True, False]
    assert f"its full output is in {plan.runs()[1].log}" in "".join(capsys.readouterr().out.split("\n"))


def test_the_page_is_made_of_what_is_there_and_the_exit_code_says_that_a_run_failed(tmp_path, quick, capsys):
    base = tiny_config(tmp_path)
    (tmp_path / "base.yaml").write_text(to_yaml(base))
    output = tmp_path / "c"
    words = ["compare", "--config", str(tmp_path / "base.yaml"), "--seeds", "2", "--output_dir", str(output)]
    assert main([*words, "--vary", "learning_rate=0.1,0.2,2"]) == 1
    said = capsys.readouterr().out
    assert "3 variants × 2 seeds = 6 runs" in said
    page = (output / "compare.html").read_text()
    assert "<h2>Runs left out</h2>" in page
    assert "2.0, seed 43: error: --learning_rate: is above 1" in page
    assert "2 variants of learning_rate" in page
    assert (
        main(["compare", "--output_dir", str(output), "--baseline", "0.1"]) == 1
    )  # goes on: the failed ones again
    assert "6 runs" in capsys.readouterr().out
    assert main([*words, "--vary", "learning_rate=2", "--output_dir", str(tmp_path / "d")]) == 1
    assert "every run failed" in capsys.readouterr().out


def test_a_metric_that_no_run_has_is_said_after_the_first_run(tmp_path, quick, capsys):
    config = tiny_config(tmp_path, max_steps=1)
    (tmp_path / "base.yaml").write_text(to_yaml(config))
    command = [
        "compare",
        "--config",
        str(tmp_path / "base.yaml"),
        "--vary",
        "learning_rate=0.1,0.2",
        "--seeds",
        "2",
    ]
    command += ["--output_dir", str(tmp_path / "out")]
    assert main([*command, "--metric", "rewrd"]) == 2
    said = capsys.readouterr()
    assert "--metric rewrd" in said.err
    assert "did you mean 'reward'" in said.err
    assert len(list((tmp_path / "out").glob("*/*/final"))) == 1
    assert main([*command, "--metric", "reward"]) == 0


def test_a_killed_run_says_by_what(tmp_path, monkeypatch):
    program = "import os; print('step 3/9', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(jobs, "command_of", lambda file: [sys.executable, "-c", program])
    plan = plan_of(tmp_path / "c", 0.1, seeds=1)
    assert train_runs(plan.runs(), 1, plan.output).failed == ("0.1, seed 42: step 3/9 (killed by SIGKILL)",)


def test_a_run_without_a_checkpoint_is_begun_again(tmp_path, quick):
    plan = plan_of(tmp_path / "c", 0.1, seeds=1)
    [run] = plan.runs()
    run.directory.mkdir(parents=True)
    (run.directory / "metrics.jsonl").write_text('{"step": 1, "reward": 99}\n{"step": 2, "rew')
    train_runs([run], 1, plan.output)
    assert [row["reward"] for row in rows(run.directory, "metrics.jsonl")] == [0.1, 0.1]


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, quick):
    """SIGINT is passed on, so that the runs under way save; then nothing else is started."""
    plan = plan_of(tmp_path / "c", 0.1, 0.2)
    plan.output.mkdir()
    (plan.output / "hold").touch()

    def stop_in_the_middle():
        while not all(last_step(run.directory) == 1 for run in plan.runs()[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop_in_the_middle)
    thread.start()
    ended = train_runs(plan.runs(), 2, plan.output)
    thread.join()
    assert ended.signum == signal.SIGINT
    assert [run.has_checkpoint() for run in plan.runs()] == [True, True, False, False]
    assert not plan.runs()[2].directory.exists()
    (plan.output / "hold").unlink()
    assert train_runs(plan.runs(), 2, plan.output).failed == ()
    for run in plan.runs():
        assert [row["step"] for row in rows(run.directory, "metrics.jsonl")] == [1, 2]
    assert "starts at step 2" in plan.runs()[0].log.read_text()


def test_two_comparisons_do_not_train_in_one_directory(tmp_path, quick, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(jobs, "PATIENCE", 0.2)
    plan = plan_of(tmp_path / "c", 0.1)
    plan.output.mkdir()
    with (plan.output / jobs.LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another comparison is running in it"):
            train_runs(plan.runs(), 1, plan.output)


# --------------------------------------------------------------------------- real runs


def test_variants_of_one_seed_share_prompts_and_noise(tmp_path):
    """In the first step, before the variants have learned anything, they sample the same; another seed doesn't."""
    base = tiny_config(tmp_path, max_steps=2, log_completions=100)
    plan = make_plan(base, grid(["loss_type=grpo,sapo"], base), 2, tmp_path / "c")
    firsts, seconds = [], []
    for run in plan.runs():
        started = start(run.config)
        train(started)
        started.close()
        found = rows(run.directory, "completions.jsonl")
        kept = [
            [(g["source"], g["prompt"], g["completions"]) for g in found if g["step"] == s] for s in (1, 2)
        ]
        firsts.append(kept[0])
        seconds.append([prompts[:2] for prompts in kept[1]])
    assert len(firsts[0]) == 4
    assert firsts[0] == firsts[1]
    assert firsts[2] == firsts[3]
    assert firsts[0] != firsts[2]
    assert seconds[0] == seconds[1]  # the order of the prompts stays the same


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_gives_the_same_outcome(tmp_path):
    """SIGKILL of the comparison; its runs save and end. Then finished runs are kept, and the stopped ones are resumed."""
    base = tiny_config(tmp_path, max_steps=40, eval_dataset=(str(tmp_path / "train.jsonl"),), eval_samples=4)
    (tmp_path / "base.yaml").write_text(to_yaml(base))

    plan = make_plan(base, grid(["loss_type=grpo,sapo,cispo"], base), 1, tmp_path / "killed")
    first, second, third = plan.runs()
    command = ["compare", "--config", str(tmp_path / "base.yaml"), "--vary", "loss_type=grpo,sapo,cispo"]
    command += ["--seeds", "1", "--output_dir", str(plan.output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "grpokit", *command],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    under_way = second.directory / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (under_way.exists() and under_way.read_text().count("\n") > 2):
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert first.is_finished()
    assert not third.directory.exists()
    kept = (first.directory / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (first.directory / "final" / "model.safetensors").stat().st_mtime_ns == kept
    assert "resuming from" in second.log.read_text()
    whole = dataclasses.replace(plan, output=tmp_path / "whole")
    for ours, theirs in zip(plan.runs(), whole.runs(), strict=True):
        run = start(theirs.config)
        train(run)
        run.close()
        files = [each.directory / "final" / "model.safetensors" for each in (ours, theirs)]
        assert files[0].read_bytes() == files[1].read_bytes(), ours.name
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            assert rows(ours.directory, name) == rows(theirs.directory, name)
