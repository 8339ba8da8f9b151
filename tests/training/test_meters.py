"""What measures a run: its clock, its memory, its profile, and the tokens that it records."""

from __future__ import annotations

import gzip
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.losses import token_pull
from grpokit.parallel import ALONE
from grpokit.policy.flops import Work
from grpokit.runs.batches import batch_for, read_batch
from grpokit.runs.token_states import CLIPPED, NO_ADVANTAGE, TRAINED
from grpokit.training import recording
from grpokit.training.clock import Clock
from grpokit.training.memory import PeakMemory
from grpokit.training.setup.loss import loss_from_config
from helpers import forked
from helpers.launch import rows
from helpers.tiny import tiny_config


class FakeMemory:
    """Peaks that a test decides: each call takes the next."""

    def __init__(self, *peaks):
        self.peaks = list(peaks)

    def take(self):
        return self.peaks.pop(0)


def command_for(tmp_path, **changes):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(tiny_config(tmp_path, **changes)))
    return ["train", "--config", str(path)]


# --------------------------------------------------------------------------- clock and memory


def test_phases_nest_and_each_has_the_peak_of_what_is_inside():
    gib = 2**30
    # taken at: step begins, rollout begins, reward begins, reward ends, rollout ends, step ends
    clock = Clock(FakeMemory(9 * gib, 1 * gib, 2 * gib, 5 * gib, 3 * gib, 4 * gib))  # pyright: ignore[reportArgumentType]
    with clock("step"), clock("rollout"), clock("reward"):
        pass
    assert clock.peaks == {"step": 5 * gib, "rollout": 5 * gib, "reward": 5 * gib}
    clock = Clock(FakeMemory(9 * gib, 1 * gib, 6 * gib, 2 * gib, 3 * gib, 4 * gib))  # pyright: ignore[reportArgumentType]
    with clock("step"):
        with clock("rollout"):
            pass
        with clock("learn"):
            pass
    assert clock.peaks == {"step": 6 * gib, "rollout": 6 * gib, "learn": 3 * gib}


def test_flops_are_those_of_the_phase_and_of_what_it_is_in():
    work = Work()
    clock = Clock(work=work)
    with clock("step"):
        work.flops += 1e12
        with clock("learn"):
            work.flops += 2e12
    assert clock.flops == {"step": 3e12, "learn": 2e12}
    clock.seconds = {"step": 4.0, "learn": 2.0, "rollout": 1.0}
    found = clock.metrics(100, ALONE, sampled=5e12, peak=10e12)
    figures = {name: metric.value for name, metric in found.items()}
    assert figures["tflops/learn"] == 1.0
    assert figures["mfu/learn"] == 0.1
    assert figures["tflops/rollout"] == 5.0
    assert figures["tokens_per_second"] == 25.0
    assert figures["tokens_per_second/learn"] == 50.0
    assert figures["tokens_per_second/rollout"] == 100.0
    assert not [name for name in found if name.startswith("mfu") and name not in ("mfu/learn", "mfu/rollout")]


def test_a_peak_is_that_since_the_last_reading():
    memory = PeakMemory(torch.device("cpu"))
    if not memory.reads:
        pytest.skip("the system does not let a process reset its peak memory")
    memory.take()
    big = torch.ones(50_000_000)  # 200 MB
    del big
    high, low = memory.take(), memory.take()
    assert high is not None
    assert low is not None
    assert high - low > 150 * 2**20


# --------------------------------------------------------------------------- a run's metrics and profile


def test_a_run_measures_memory_and_flops_by_phase_and_writes_what_it_is(tmp_path):
    assert main([*command_for(tmp_path, max_steps=2, device_tflops=0.5)]) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for phase in ("rollout", "learn"):
        assert row[f"tflops/{phase}"] > 0
        assert row[f"mfu/{phase}"] == pytest.approx(row[f"tflops/{phase}"] / 0.5)
        assert row[f"tokens_per_second/{phase}"] > row["tokens_per_second"]
    if PeakMemory(torch.device("cpu")).reads:
        assert row["memory/learn"] >= row["memory/host"] * 0.5 > 0
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["model"] == "Qwen3ForCausalLM"
    assert about["parameters"] == about["trainable_parameters"] > 1000
    assert about["plan"].startswith("4 prompts × 4 = 16 completions a step")
    assert about["device"] == "CPU"


def test_a_profile_says_where_time_and_memory_go(tmp_path, capsys):
    assert main([*command_for(tmp_path, max_steps=4, profile_steps=2)]) == 0
    folder = tmp_path / "run" / "profile"
    text = (folder / "profile.md").read_text()
    assert text.startswith("# Profile of 2 steps")
    lines = re.findall(r"^\| (\w+) \| ([\d.e-]+) \|", text, re.M)
    assert {phase for phase, _ in lines} >= {"rollout", "learn", "other"}
    learn = next(line for line in text.splitlines() if line.startswith("| learn"))
    cells = [cell.strip() for cell in learn.strip("|").split("|")]
    profilers, ours, _, planned = (float(cell) if cell else None for cell in cells[5:])
    assert planned
    assert profilers
    assert ours
    assert 0.2 < ours / profilers < 5  # padding, and attention that the profiler does not count
    assert "| `aten::mm` |" in text.split("## learn")[1]
    assert "## rollout" in text
    with gzip.open(folder / "trace-rank-0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert names.count("grpokit/learn") == 2
    said = capsys.readouterr().out
    assert "profile.md" in said
    assert "Profile of 2 steps" in said


def test_a_run_of_one_step_is_profiled_too(tmp_path):
    assert main([*command_for(tmp_path, max_steps=1, profile_steps=3)]) == 0
    assert (tmp_path / "run" / "profile" / "profile.md").read_text().startswith("# Profile of 1 step")


def test_a_profile_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    command = command_for(tmp_path, max_steps=3, profile_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("in the way")
    assert main(command) == 0
    assert "--profile_steps: the profile could not be written" in capsys.readouterr().out
    assert len(rows(tmp_path / "run", "metrics.jsonl")) == 3


def test_an_error_of_the_profiler_ends_nothing(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("the trace is broken")

    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", broken)
    assert main(command_for(tmp_path, max_steps=4, profile_steps=1)) == 0
    assert "the trace is broken" in capsys.readouterr().out
    assert (tmp_path / "run" / "final").is_dir()


# --------------------------------------------------------------------------- tokens


def tokens_of(run, step):
    """The tensors of a step's recorded tokens, and what is said of its completions."""
    path = run / "tokens" / f"step-{step:06d}.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["completions"])


@pytest.mark.parametrize("loss_type", ["grpo", "cispo", "gspo", "kl_cov"])
def test_recorded_tokens_are_what_the_update_did(tmp_path, monkeypatch, loss_type):
    """Against a recorded batch of the same step: with one update its log-probs before learning are those of the forward."""
    changes = {
        "loss_type": loss_type,
        "log_tokens": 99,
        "record_batches": 1,
        "max_steps": 1,
        "num_iterations": 1,
    }
    config = tiny_config(tmp_path, **changes)
    assert main(command_for(tmp_path, **changes)) == 0
    found, records = tokens_of(tmp_path / "run", 1)
    batch = read_batch(tmp_path / "run" / "batches" / "step-1.safetensors")
    batch["logps"] = batch["old_logps"]  # before the update
    loss = loss_from_config(config)
    whole = batch_for(loss, batch)
    stats = None
    if loss.coupling != "token":
        from grpokit.losses import UpdateStats

        stats = UpdateStats.of(loss, whole).finish(loss, config.seed, 0)
    want = token_pull(loss, whole, stats).pull
    assert len(records) == 16
    assert torch.allclose(found["advantages"].double(), batch["advantages"].double(), atol=1e-6)
    live = found["advantages"] != 0
    assert live.any()
    assert torch.allclose(found["pull"][live].double(), want[live], rtol=1e-4, atol=1e-7)
    assert (found["ratios"][live] == 1).all()
    assert (found["state"][~live] == NO_ADVANTAGE).all()
    assert (found["state"][live] == TRAINED).all()


def test_the_last_pass_over_a_step_is_the_one_that_is_recorded(tmp_path):
    changes = {
        "loss_type": "grpo",
        "log_tokens": 99,
        "max_steps": 1,
        "num_iterations": 3,
        "learning_rate": 3e-2,
    }
    assert main(command_for(tmp_path, **changes)) == 0
    found, _ = tokens_of(tmp_path / "run", 1)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    known = ~found["ratios"].isnan()
    assert float(found["ratios"][known].max()) <= row["ratio/max"] * (1 + 1e-6)
    up, down = found["advantages"] > 0, found["advantages"] < 0
    beyond = known & ((up & (found["ratios"] > 1.2 + 1e-6)) | (down & (found["ratios"] < 0.8 - 1e-6)))
    within = known & ~((up & (found["ratios"] > 1.2 - 1e-6)) | (down & (found["ratios"] < 0.8 + 1e-6)))
    assert beyond.any()
    assert (found["state"][beyond] == CLIPPED).all()
    assert (found["state"][within & (up | down)] == TRAINED).all()
    assert row["time/tokens"] > 0


def test_ranks_and_updates_record_the_same_tokens(tmp_path):
    changes = {"log_tokens": 6, "max_steps": 2, "updates_per_step": 2, "loss_type": "grpo"}
    command = command_for(tmp_path, **changes)
    assert main([*command, "--output_dir", str(tmp_path / "one")]) == 0
    done = forked.run("grpokit", *command, "--output_dir", tmp_path / "two", ranks=2)
    assert done.returncode == 0, done.stderr
    for step in (1, 2):
        (ours, records), (theirs, others) = (tokens_of(tmp_path / name, step) for name in ("one", "two"))
        assert records == others
        assert len(records) == 6
        for name, column in ours.items():
            assert torch.allclose(column.double(), theirs[name].double(), atol=1e-6, equal_nan=True), name


def test_a_resumed_run_records_the_same_tokens(tmp_path):
    changes = {"log_tokens": 4, "max_steps": 4, "save_steps": 2}
    command = command_for(tmp_path, **changes)
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    assert main([*command, "--output_dir", str(tmp_path / "resumed")]) == 0
    checkpoint = tmp_path / "resumed" / "checkpoint-2"
    assert (
        main(
            [*command, "--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", str(checkpoint)]
        )
        == 0
    )
    for step in (1, 2, 3, 4):
        (ours, records), (theirs, others) = (
            tokens_of(tmp_path / name, step) for name in ("whole", "resumed")
        )
        assert records == others
        assert ours.keys() == theirs.keys()
        for name, column in ours.items():
            assert torch.equal(column.nan_to_num(9.0), theirs[name].nan_to_num(9.0)), name


@pytest.mark.parametrize("where", ["write", "trace_samples"])
def test_tokens_that_cannot_be_recorded_are_said_once_and_end_nothing(tmp_path, monkeypatch, capsys, where):
    def full(*_):
        raise (OSError if where == "write" else RuntimeError)("no space left")

    owner = recording.TokenFiles if where == "write" else recording
    monkeypatch.setattr(owner, where, full)
    assert main(command_for(tmp_path, log_tokens=4)) == 0
    assert (tmp_path / "run" / "final").is_dir()
    assert capsys.readouterr().out.count("no more tokens are recorded") == 1


def test_a_stray_file_among_the_tokens_stays_where_it_is(tmp_path):
    stray = tmp_path / "run" / "tokens" / "step-000001 (copy).safetensors"
    stray.parent.mkdir(parents=True)
    stray.write_text("x")
    assert main(command_for(tmp_path, log_tokens=4)) == 0
    assert stray.read_text() == "x"


def test_a_loss_that_looks_at_no_group_without_signal_masks_its_tokens(tmp_path):
    """`real` compares right with wrong answers of a group: where all have one label, it has nothing to compare."""
    changes = {"loss_type": "real", "log_tokens": 99, "max_steps": 1, "num_iterations": 1}
    assert main(command_for(tmp_path, **changes)) == 0
    found, _ = tokens_of(tmp_path / "run", 1)
    unused = (found["pull"] == 0) & (found["advantages"] != 0)
    assert (found["state"][unused] != CLIPPED).all()


def test_recording_tokens_changes_no_weight(tmp_path):
    for name, count in (("with", 8), ("without", 0)):
        assert main([*command_for(tmp_path, log_tokens=count), "--output_dir", str(tmp_path / name)]) == 0
    ours, theirs = (
        load_file(tmp_path / name / "final" / "model.safetensors") for name in ("with", "without")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_console_gives_advice_once(tmp_path, capsys):
    # nothing ends within two tokens
    assert main(command_for(tmp_path, max_completion_length=2, max_steps=12)) == 0
    said = capsys.readouterr().out
    assert said.count("were cut off at --max_completion_length 2") == 1
    assert "advice at step 10" in said
    assert "docs/en/guides/not-learning.md#answers-are-cut-off" in said
