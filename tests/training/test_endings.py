"""However a run ends, and whatever only watches it fails, nothing that was trained is lost."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types

import pytest

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.runs.checkpoint import checkpoints, verify
from helpers import forked
from helpers.launch import ENVIRONMENT, rows
from helpers.tiny import ROWS, tiny_config, write_rows


def command(tmp_path, **changes) -> list[str]:
    """A training command of three steps in `tmp_path`."""
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, **changes)))
    return ["train", "--config", str(tmp_path / "run.yaml")]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_saves_a_checkpoint_and_resume_gives_the_same_bytes(tmp_path, monkeypatch, name):
    from grpokit.training.run import Run

    signum = getattr(signal, name)
    words = command(tmp_path)
    pause, left = Run.pause, [6]

    def interrupted(run):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signum)
        pause(run)

    monkeypatch.setattr(Run, "pause", interrupted)
    assert main(words) == 128 + signum
    assert signal.getsignal(signum) is not signal.SIG_IGN
    (saved,) = checkpoints(tmp_path / "run")
    verify(saved)
    monkeypatch.undo()
    assert main([*words, "--resume_from_checkpoint", "auto"]) == 0
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    weights = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path, monkeypatch):
    from grpokit.training.run import Run

    pause = Run.pause

    def interrupted(run):
        os.kill(os.getpid(), signal.SIGHUP)
        pause(run)

    monkeypatch.setattr(Run, "pause", interrupted)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(command(tmp_path)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("closed", ["stdout", "stdout and stderr"])
def test_a_run_outlives_the_reader_of_its_output(tmp_path, closed):
    """As with `| head -1`, or a `tee` that dies."""
    run = subprocess.Popen(
        [sys.executable, "-m", "grpokit", *command(tmp_path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if "stderr" in closed else subprocess.PIPE,
        text=True,
    )
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(timeout=300) == 0, run.stderr and run.stderr.read()
    if run.stderr:
        assert "Error" not in run.stderr.read()
        run.stderr.close()
    assert len(rows(tmp_path / "run", "metrics.jsonl")) == 3
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capsys, failing):
    calls = []

    def call(name):
        def called(**_):
            calls.append(name)
            if name == failing:
                raise RuntimeError(f"no network\nfor {name}")

        return called

    def log(row, step):
        call("log")()

    wandb = types.ModuleType("wandb")
    wandb.init, wandb.log, wandb.finish = call("init"), log, call("finish")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert main(command(tmp_path, report_to=("wandb",))) == 0
    said = capsys.readouterr().out
    assert said.count("warning: --report_to wandb: failed") == 1
    assert f"RuntimeError: no network for {failing}; the run goes on without it" in said
    assert calls == {"init": ["init"], "log": ["init", "log"]}.get(failing, ["init", *["log"] * 3, "finish"])
    assert len(rows(tmp_path / "run", "metrics.jsonl")) == 3


def test_a_report_that_cannot_be_drawn_ends_nothing(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr("grpokit.runs.report.write_report", fails)
    assert main(command(tmp_path)) == 0
    assert "report: could not be written (RuntimeError: no font;" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ev[v2].jsonl", "ev[/v2].jsonl", "ev[red].jsonl", ":smile:.jsonl"])
def test_paths_are_shown_as_they_are(tmp_path, capsys, name):
    (tmp_path / name.partition("/")[0]).mkdir(exist_ok=True) if "/" in name else None
    write_rows(tmp_path / name, ROWS[:2])
    held_out = {"eval_dataset": str(tmp_path / name), "eval_generations": 2}
    assert main(command(tmp_path, **held_out)) == 0
    assert main(["inspect-data", str(tmp_path / name)]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert shown.count(name) >= 3


def test_columns_and_answers_are_shown_as_they_are(tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "[/p] [bold]1=", "q[/x]": "[/y]", "a[b]": 1}])
    assert main(["inspect-data", str(tmp_path / "rows.jsonl")]) == 0
    said = capsys.readouterr().out
    for text in ("[/p] [bold]1=", "q[/x]", "[/y]", "a[b]"):
        assert text in said


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_of_any_encoding_shows_what_it_can(tmp_path, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    write_rows(tmp_path / "eval.jsonl", ROWS[:2])
    assert main(command(tmp_path, eval_dataset=str(tmp_path / "eval.jsonl"))) == 0
    assert main(["train", "--help"]) == 0
    assert main(["losses", "list"]) == 0
    out.flush()
    assert b"completions a step" in out.buffer.getvalue()


def test_a_generation_config_that_transformers_would_not_write_is_saved(tmp_path):
    words = command(tmp_path, save_steps=1)
    file = tmp_path / "model" / "generation_config.json"
    odd = json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.6, "top_k": 7}
    file.write_text(json.dumps(odd))
    assert main(words) == 0
    for directory in ("final", "checkpoint-1"):
        saved = json.loads((tmp_path / "run" / directory / "generation_config.json").read_text())
        assert (saved["temperature"], saved["top_k"]) == (0.6, 7)
        assert saved["eos_token_id"] == odd["eos_token_id"]


STUCK = """
import time
seen = []
def f(completions):
    seen.append(1)
    while len(seen) > 1:
        try:
            time.sleep(1000)
        except BaseException:
            pass
    return [float(len(c)) for c in completions]
"""


@pytest.mark.slow
def test_a_reward_that_cannot_be_interrupted_ends_the_run_and_loses_nothing(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    config = tiny_config(tmp_path, reward_funcs=(f"{tmp_path / 'stuck.py'}:f",), reward_timeout=1.0)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    done = forked.run("grpokit", "train", "--config", tmp_path / "run.yaml", timeout=120)
    assert done.returncode == 1
    assert "reward function `f` took longer than --reward_timeout 1 seconds" in done.stderr
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
