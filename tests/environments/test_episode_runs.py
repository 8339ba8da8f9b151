"""Whole runs of episodes: stopped inside a step, resampled, truncated, with several passes; each goes on to the same bytes."""

from __future__ import annotations

import json

import pytest

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers.agents import WORLDS, config_of
from helpers.stops import STOPPED, in_update, same_bytes, stop_when

# What a run of this way has in some step, so that it is exercised at all.
SHOWN = {
    "resampled": "resampled_groups",
    "truncated": "completions/clipped_ratio",
    "dropped": "endings/error",
}
WAYS = {
    "passes": {"num_iterations": 2},
    "updates": {"updates_per_step": 2},
    "resampled": {"max_resample_times": 2, "reward_funcs": ("length",)},
    "truncated": {"mask_truncated_completions": True, "max_completion_length": 30},
    "tools": {
        "environment": (),
        "tools": (f"{WORLDS}:add",),
        "tool_parser": f"{WORLDS}:always_adds",
        "reward_funcs": ("length",),
    },
    "dropped": {"environment": (f"{WORLDS}:Fragile",), "max_environment_errors": 100},
}


def command(tmp_path, name, **changes):
    settings = {"save_steps": 1, "log_completions": 2, "output_dir": str(tmp_path / name)}
    config = config_of(tmp_path, **(settings | changes))
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return main(["train", "--config", str(file)])


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_inside_a_step_goes_on_to_the_same_bytes(tmp_path, monkeypatch, way):
    changes = WAYS[way]
    assert command(tmp_path, "whole", **changes) == 0
    with monkeypatch.context() as patch:
        stop_when(patch, in_update(1 if way in ("passes", "updates") else 0, step=1))
        assert command(tmp_path, "halves", **changes) == STOPPED
    assert list((tmp_path / "halves").glob("checkpoint-1-update-*"))
    assert command(tmp_path, "halves", resume_from_checkpoint="auto", **changes) == 0
    same_bytes(tmp_path / "halves", tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["turns/max"] > 1 for row in rows)
    assert any(row.get("grad_norm", 0.0) > 0 for row in rows)
    assert way not in SHOWN or any(row[SHOWN[way]] > 0 for row in rows)
