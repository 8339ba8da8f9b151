"""Runs that nobody trained: files of a run that are plausible, or hostile."""

from __future__ import annotations

import json
import math
import random
import re

from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from grpokit.runs.report import write_report

FORMULA = "\n".join(
    [
        r"L = \sum_{i,t} w_i\,\ell_{i,t}",
        r"\ell = -\min\left(\rho\,A,\ \mathrm{clip}(\rho,\,1-\epsilon,\,1+\epsilon_{high})\,A\right)",
        r"w_i = \frac{1}{N\,T_i}",
    ]
)


EVIL = '<script>alert("x")</script> & <b>bold</b> https://example.com </pre></main>'


def metrics_row(step, steps, loss_type, rng):
    """A plausible row of metrics.jsonl."""
    done = 1 - math.exp(-4 * step / steps)
    reward = 0.3 + 0.65 * done + rng.gauss(0, 0.03)
    row = {
        "step": step,
        "reward": reward,
        "reward_std": 0.45 * (1 - done) + 0.05,
        "frac_reward_zero_std": done * 0.7,
        "rewards/exact_match/mean": reward,
        "rewards/format/mean": 0.6 + 0.4 * done,
        "completions/mean_length": 60 - 10 * done,
        "completions/min_length": 20.0,
        "completions/max_length": 128.0,
        "completions/clipped_ratio": 0.1 * (1 - done),
        "entropy": 1.1 - done,
        "loss": rng.gauss(0, 0.01),
        "grad_norm": abs(rng.gauss(1, 0.2)),
        "learning_rate": 3e-4,
        "kl": 0.05 * done,
        "ratio/ess": 0.98,
        "ratio/max": 1.5,
        "tokens_per_second": 4000.0,
        "frac_tokens_dropped": done * 0.6,
        "time/step": 0.4,
        "time/rollout": 0.1,
        "time/reward": 0.01,
        "time/learn": 0.25,
        "time/sync": 0.0,
    }
    if loss_type == "sapo":
        return row | {"gate/mean": 0.97}
    return row | {"clip_ratio/low_mean": 0.012, "clip_ratio/high_mean": 0.0, "clip_ratio/region_mean": 0.012}


def a_group(step, total, **changes):
    """A group of completions.jsonl with these rewards."""
    group = {
        "step": step,
        "prompt": "3142=",
        "source": "train.jsonl:7",
        "columns": {"answer": "1234"},
        "completions": [f"completion {i}" for i in range(len(total))],
        "rewards": {"exact_match": total},
        "reward": total,
        "advantages": [0.5 if reward else -0.5 for reward in total],
        "finish_reasons": ["stop"] * len(total),
    }
    return group | changes


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(path, steps=20, loss_type="grpo", groups=None, **options):
    """A run's directory."""
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    config = TrainConfig(model="m", dataset="d.jsonl", loss_type=loss_type, max_steps=steps, **options)
    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    rows = [metrics_row(step, steps, loss_type, rng) for step in range(1, steps + 1)]
    figures = [
        {
            "step": step,
            "eval/pass@1": p,
            "eval/pass@1_greedy": p + 0.02,
            "eval/pass@4": p + 0.03,
            "eval/reward": p,
        }
        for step, p in ((0, 0.312), (steps, 0.951))
    ]
    rows[-1] |= figures[-1]
    write_lines(path / "metrics.jsonl", rows)
    write_lines(path / "evaluations.jsonl", figures)
    if groups is None:
        groups = [
            a_group(steps - 1, [1.0, 1.0]),
            a_group(steps, [1.0, 0.0], prompt="middle"),
            a_group(steps, [0.0, 0.0], prompt="the worst"),
            a_group(steps, [1.0, 1.0], prompt="the best"),
        ]
    write_lines(path / "completions.jsonl", groups)
    return path


def report(path, **how):
    """The page of a run."""
    return write_report(path, **how).read_text(encoding="utf-8")


def evil_run(path):
    """A run in which everything that a user or a model writes is hostile or very long."""
    groups = [
        a_group(
            20,
            [1.0, 0.0, None],
            prompt=[{"role": EVIL, "content": EVIL}, {"role": "user", "content": [{"type": "text"}]}],
            source=EVIL,
            columns={EVIL: EVIL, "long": "w" * 3000},
            completions=[EVIL, "x" * 30_000, "half a pair \ud800, a zero \x00, a return \r\n."],
            rewards={EVIL: [1.0, 0.0, None], "long_" * 40: [1.0, None, 2.0]},
        ),
        a_group(20, [0.0, 0.0], completions=["", "汉字 العربية " * 50], finish_reasons=["length"]),
    ]
    make_run(path, groups=groups, ref_model=EVIL, eval_dataset="d/" * 200)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    write_lines(path / "metrics.jsonl", [{**row, "rewards/$x_1$ 汉 <i>/mean": 0.5} for row in rows])
    return path


def plots(page):
    """The keys of the plots in the page, in order."""
    return re.findall(r'id="plot-([a-z-]+)"', page)
