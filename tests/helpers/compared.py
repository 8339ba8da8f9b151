"""Runs for comparisons that nobody trained: variants whose scores are planted."""

from __future__ import annotations

import math
import random
from pathlib import Path

from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from helpers.synthetic_runs import metrics_row, write_lines

EVALUATED = (0, 5, 10, 15, 20)


def make_planted_run(path: Path, seed: int, score: float, steps: int = 20, **options) -> Path:
    """A finished run whose last evaluation is `score`. `options` are its configuration's."""
    (path / "final").mkdir(parents=True)
    settings = {"model": "m", "dataset": ("d.jsonl",), "max_steps": steps} | options
    config = TrainConfig(**settings, seed=seed, output_dir=str(path))
    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    rng = random.Random(f"{path.parent.name}{seed}")
    rows = [metrics_row(step, steps, config.loss_type, rng) for step in range(1, steps + 1)]
    write_lines(path / "metrics.jsonl", [{**row, "num_tokens": 100.0} for row in rows])
    held_out = [score + 0.1 - 0.4 * math.exp(-step / 5) for step in EVALUATED[:-1]] + [
        score
    ]  # its best is earlier
    figures = [{"eval/reward": value, "eval/pass@1": value} for value in held_out]
    write_lines(
        path / "evaluations.jsonl", [{"step": s, **f} for s, f in zip(EVALUATED, figures, strict=True)]
    )
    return path


def make_planted_runs(folder: Path, names: list[str], seeds: int = 5, gap: float = 0.0) -> list[Path]:
    """Runs of several losses over paired seeds: each loss scores `gap` more than the one before."""
    paths = []
    for place, name in enumerate(names):
        for seed in range(1, seeds + 1):
            shared, own = random.Random(seed), random.Random(f"{name}{seed}")
            score = 0.5 + shared.gauss(0, 0.03) + own.gauss(0, 0.008) + gap * place
            paths.append(make_planted_run(folder / name / f"seed-{seed}", seed, score, loss_type=name))
    return paths
