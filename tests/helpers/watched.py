"""Runs for the page of `grpokit watch`: their completions with lengths, episodes, and tokens with all that is said of each."""

from __future__ import annotations

import json
import random

import numpy as np
from safetensors.numpy import save_file

from helpers.synthetic_runs import a_group, make_run, metrics_row, write_lines

WORDS = "First we add the digits , then carry one . So the answer is 42 < b > & \n".split(" ")
EPISODE = [
    {"role": "user", "content": "What is 6 × 7?"},
    {"role": "assistant", "content": "I ask the calculator.", "tool_calls": [
        {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "6*7"}}}]},
    {"role": "tool", "name": "calculate", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
]  # fmt: skip


def write_tokens(folder, step, num=4, length=60, seed=0):
    """tokens/step-N.safetensors with all states, numbers that were not computed, and text that looks like HTML."""
    rng = np.random.default_rng(seed + step)
    total = num * length
    pieces = [*(word + " " for word in WORDS), "\ufffd", "<|im_end|>", "<img src=x onerror=alert(1)>", "汉"]
    state = rng.integers(0, 5, total).astype(np.uint8)
    not_own = state == 4
    logps = -rng.exponential(0.7, total).astype(np.float32)
    entropies = rng.exponential(0.8, total).astype(np.float32)
    ratios = np.exp(rng.normal(0, 0.15, total)).astype(np.float32)
    pull = rng.normal(0, 0.01, total).astype(np.float32)
    entropies[not_own] = ratios[not_own] = pull[not_own] = np.nan
    tensors = {
        "lengths": np.full(num, length, np.int32),
        "ids": rng.integers(0, 50_000, total).astype(np.int32),
        "piece": rng.integers(0, len(pieces), total).astype(np.int32),
        "logps": logps,
        "entropies": entropies,
        "trainable": (~not_own).astype(np.uint8),
        "advantages": np.repeat(rng.normal(0, 1, num), length).astype(np.float32),
        "ratios": ratios,
        "pull": pull,
        "state": state,
    }
    completions = [
        {
            "group": i // 2,
            "generation": i % 2,
            "source": "train.jsonl:7",
            "prompt": "3142=",
            "reward": float(i % 2),
            "rewards": {"accuracy": float(i % 2)},
            "advantage": float(tensors["advantages"][i * length]),
            "finish_reason": "stop",
            "ending": None,
            "turns": None,
        }
        for i in range(num)
    ]
    (folder / "tokens").mkdir(exist_ok=True)
    metadata = {"step": str(step), "pieces": json.dumps(pieces), "completions": json.dumps(completions)}
    save_file(tensors, folder / "tokens" / f"step-{step:06d}.safetensors", metadata)


def some_groups(step, groups=4, generations=8, words=40, seed=0):
    """Groups of completions of a step, with lengths and extras; the last one has episodes."""
    rng = random.Random(seed * 100_000 + step)
    rows = []
    for g in range(groups):
        counts = [rng.randint(words // 2, words) for _ in range(generations)]
        row = a_group(
            step,
            [float(rng.random() < 0.5) for _ in range(generations)],
            prompt=[{"role": "user", "content": f"Question {g} of step {step}"}],
            source=f"train.jsonl:{g + 1}",
            completions=[" ".join(rng.choices(WORDS, k=count)) for count in counts],
            finish_reasons=[rng.choice(["stop", "stop", "length"]) for _ in range(generations)],
            lengths=counts,
            extras={"parsed": [str(count) for count in counts]},
        )
        if g == groups - 1:
            row["episodes"] = [
                {"messages": EPISODE, "ending": "done", "turns": 2, "reward": 1.0} for _ in range(generations)
            ]
        rows.append(row)
    return rows


def watched_row(step, steps, rng):
    """A row of metrics with memory and throughput of each phase."""
    return metrics_row(step, steps, "grpo", rng) | {
        "memory/rollout": 3.1,
        "memory/learn": 5.2 + step / steps,
        "memory/host": 2.5,
        "tokens_per_second/rollout": 9000.0,
        "tokens_per_second/learn": 15000.0,
        "mfu/learn": 0.31,
    }


def make_watched_run(path, steps=20, done=None, max_steps=None, **options):
    """A run of `done` of its steps, with completions and tokens of some."""
    done = steps if done is None else done
    make_run(path, steps, groups=[], **options)
    rng = random.Random(1)
    write_lines(path / "metrics.jsonl", [watched_row(step, steps, rng) for step in range(1, done + 1)])
    groups = [group for step in range(1, done + 1) for group in some_groups(step)]
    write_lines(path / "completions.jsonl", groups)
    for step in range(1, done + 1, 5):
        write_tokens(path, step)
    about = {
        "model": "Qwen2.5-0.5B",
        "parameters": 494_032_768,
        "trainable_parameters": 494_032_768,
        "loss": "grpo: clip, mean over sequences",
        "formula": r"\ell = -\min(\rho A, \mathrm{clip}(\rho) A)",
        "plan": "8 prompts × 8 completions = 64 a step, in 1 update",
        "ranks": 1,
        "device": "cpu",
        "dtype": "float32",
        "torch": "2.9",
    }
    (path / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return path


def append_step(path, step, steps, seed=9):
    """What a run writes after a step, as it goes on."""
    rng = random.Random(seed + step)
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(watched_row(step, steps, rng)) + "\n")
    with (path / "completions.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(group) + "\n" for group in some_groups(step))
