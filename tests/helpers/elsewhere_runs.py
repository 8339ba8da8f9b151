"""Runs that sample one step ahead."""

from __future__ import annotations

import json
from pathlib import Path

from grpokit.config.yaml import to_yaml
from helpers.tiny import tiny_config


def command_for(directory: Path, **changes) -> list[str]:
    settings = {
        "sampler": "vllm",
        "async_depth": 1,
        "num_iterations": 1,
        "prompts_per_step": 2,
        "max_steps": 4,
    }
    config = tiny_config(directory, **(settings | changes))
    (directory / "run.yaml").write_text(to_yaml(config))
    return ["train", "--config", str(directory / "run.yaml"), "--output_dir"]


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
