"""`grpokit eval`: a model, a dataset and rewards, and nothing that trains."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..common.console import console, counting, figures_table, say, waiting
from ..config.options import EvalConfig
from ..parallel import default_device
from ..policy.load import load_policy, load_tokenizer
from ..rewards import describe_rewards as recognised_rewards
from ..rewards import score
from ..training.evaluation import evaluate
from ..training.setup.data import load_prompts, make_rewards
from ..training.setup.models import context_of, set_threads
from ..training.setup.samplers import make_sampler
from ..types import Prompt, RolloutGroup


def run_evaluation(config: EvalConfig) -> dict[str, float]:
    """`grpokit eval`: load, evaluate, print a table, and write it where --output_file says."""
    n = config.num_generations
    wanted = config.pass_at_k or tuple(sorted({1, n}))
    if n < 1 or not all(1 <= k <= n for k in wanted):
        raise ValueError(
            f"--pass_at_k {' '.join(map(str, wanted))}: each k must be between 1 and --num_generations {n}"
        )
    with waiting("loading torch and the model"):
        tokenizer = load_tokenizer(config.model, config.trust_remote_code)
        policy = load_policy(
            config.model,
            dtype=config.dtype,
            temperature=config.temperature,
            device=default_device(),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
        set_threads(config, policy)
        prompts = load_prompts(config, config.dataset, "--dataset", tokenizer, context_of(policy))
        rewards = make_rewards(config, prompts.columns)
        say(recognised_rewards(rewards))
        sampler = make_sampler(config, policy, tokenizer, config.seed)

    def completed(prompts: Sequence[Prompt], count: int, greedy: bool) -> list[RolloutGroup]:
        return score(sampler.sample(prompts, count, greedy=greedy), rewards, config.reward_timeout)

    chosen = prompts.in_order()
    with counting(f"{len(chosen)} prompts × {n}", len(chosen)) as progress:
        figures = evaluate(completed, chosen, num_generations=n, pass_at_k=wanted, progress=progress)
    console.print(figures_table(figures, f"{config.model} on {len(chosen)} prompts of {config.dataset}"))
    if config.output_file:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        Path(config.output_file).write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    return figures
