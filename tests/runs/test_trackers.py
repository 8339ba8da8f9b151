"""Trackers, for real: what a run logged is read back from where each of them keeps it."""

from __future__ import annotations

import json

import pytest

from helpers.running import start, train
from helpers.tiny import tiny_config


def trained(tmp_path, *stops, **changes):
    """A run to each of `stops`, the later ones resumed; its metrics."""
    for stop in stops:
        resume = "auto" if stop != stops[0] else ""
        run = start(
            tiny_config(tmp_path, max_steps=stop, save_steps=2, resume_from_checkpoint=resume, **changes)
        )
        train(run)
        run.close()
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore")  # of the packages' own
def test_tensorboard_has_every_metric_of_every_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="NOT TESTED: TensorBoard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = trained(tmp_path, 2, 3, report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("reward", "loss", "grad_norm", "completions/mean_length"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == {row["step"]: pytest.approx(row[name], rel=1e-6, abs=1e-12) for row in rows}
    texts = events.Tensors("completions/text_summary")
    assert [event.step for event in texts] == [1, 2, 3]
    assert b"| reward | completion |" in texts[0].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_them_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="NOT TESTED: Trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    rows = trained(tmp_path, 3, report_to=("trackio",), project="tests", run_name="one")
    logs = sqlite_storage.SQLiteStorage.get_logs("tests", "one")
    assert [log["step"] for log in logs] == [1, 2, 3]
    for log, row in zip(logs, rows, strict=True):
        assert log["reward"] == pytest.approx(row["reward"])
        assert log["loss"] == pytest.approx(row["loss"])


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"--report_to wandb: is not installed .*pip install grpokit\[wandb\]"
    ):
        start(tiny_config(tmp_path, report_to=("wandb",)))
