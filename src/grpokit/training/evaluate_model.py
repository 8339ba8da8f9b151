"""Evaluates a model without training it: `grpokit eval`, and `grpokit.evaluate` from Python."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.console import console, counting, figures_table, say, waiting
from ..config.options import EvalConfig
from ..rewards import Report, describe_rewards, load_rewards, pass_note, score
from ..rollouts import Sampler
from ..runs.metrics import is_taken
from ..types import Metrics, Prompt, RolloutGroup, join_metrics
from .evaluation import Evaluation, evaluate, logged_figures
from .setup.columns import columns_of, note_empty_routes
from .setup.environments import episode_sampler, find_environments, longest_sequence
from .setup.form import find_tokenizer
from .setup.gate import check_model, check_tokens
from .setup.models import find_context, load_configured, set_threads
from .setup.parts import Parts
from .setup.prompts import PromptSource, load_datasets, load_prompts
from .setup.samplers import EVAL_SEED, make_sampler
from .setup.tasks import load_tasks

TASKS = 100  # tasks to evaluate on, where an environment owns its data and --max_samples doesn't say how many


def evaluate_model(config: EvalConfig, parts: Parts | None = None) -> dict[str, float]:
    """Loads a model, evaluates it, prints a table, and writes the figures where --output_file says.

    Args:
        config: the configuration, checked.
        parts: objects in the place of names, from Python.

    Returns:
        The figures by name; NaN where there was nothing to measure.

    Raises:
        ValueError: naming the option that cannot work.
    """
    found = measure_model(config, parts)
    figures = found.figures
    console.print(figures_table(figures, f"{config.model} on {where_of(config, found)}"))
    write_figures(config.output_file, figures)
    return figures


def where_of(config: EvalConfig, found: Evaluation) -> str:
    """Says on which prompts an evaluation was made, for the title of its table."""
    return f"{len(found.by_prompt)} prompts of {' '.join(config.dataset) or config.environment[0]}"


def write_figures(file: str, figures: Any) -> None:
    """Writes figures, or figures by model, to a JSON file; NaN becomes null. An empty name writes nothing."""
    if not file:
        return

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(each) for name, each in value.items()}
        return value if math.isfinite(value) else None

    Path(file).write_text(json.dumps(finite(figures), indent=2) + "\n", encoding="utf-8")


def measure_model(config: EvalConfig, parts: Parts | None = None) -> Evaluation:
    """Loads a model and evaluates it; see `evaluate_model`."""
    parts = parts or Parts()
    n = config.num_generations
    wanted = config.pass_at_k or tuple(sorted({1, n}))
    if n < 1 or not all(1 <= k <= n for k in wanted):
        raise ValueError(
            f"--pass_at_k {' '.join(map(str, wanted))}: each k must be between 1 and --num_generations {n}"
        )
    with waiting("loading torch and the model"):
        # Mistakes in the data and the rewards are found before the weights are loaded.
        context = find_context(config, model=parts.model)
        tokenizer = find_tokenizer(config, parts, config.model)
        environments = find_environments(config, parts, tokenizer)
        tools_of = None if environments is None else environments.tools_of
        if environments is not None and not config.dataset:
            prompts: PromptSource = load_tasks(environments, config, tokenizer, context)
        elif (rows := parts.train_dataset) is not None and not isinstance(rows, Mapping):
            prompts = load_prompts(config, config.dataset[0], "--dataset", tokenizer, context, rows, tools_of)
        else:
            prompts = load_datasets(config, tokenizer, context, tools_of, rows)
        rewards = load_rewards(config, columns_of(prompts, environments), parts.reward_funcs)
        rewards += () if environments is None else environments.rewards
        policy = load_configured(config.model if parts.model is None else parts.model, config)
        set_threads(config, policy)
        tokenizer = check_tokens(policy, tokenizer, prompts)
        longest = longest_sequence(environments, config, policy, prompts.longest)
        check_model(policy, config.model, longest, config)
        say(describe_rewards(rewards))
        if note := pass_note(rewards):
            say(note)
        if config.reward_routes:
            note_empty_routes(rewards, prompts.checked())
        # An environment's tasks follow from the seed, and must not be those that a run with this seed trains on.
        seed = config.seed if config.dataset else config.seed + EVAL_SEED
        turns = make_sampler(config, policy, tokenizer, seed)
        sampler: Sampler = turns
        if environments is not None:
            sampler = episode_sampler(environments, config, policy, tokenizer, turns)

    logged: Metrics = {}

    def complete(prompts: Sequence[Prompt], count: int, greedy: bool) -> list[RolloutGroup]:
        report = Report(is_taken=is_taken)
        groups = sampler.sample(prompts, count, greedy=greedy)
        scored = score(groups, rewards, config.reward_timeout, report=report)
        if not greedy:  # as of eval/reward
            logged.update(join_metrics(logged, report.metrics))
        return scored

    # A dataset has been cut to --max_samples already.
    chosen = prompts.in_order(0 if config.dataset else config.max_samples or TASKS)
    with counting(f"{len(chosen)} prompts × {n}", len(chosen)) as progress:
        found = evaluate(complete, chosen, num_generations=n, pass_at_k=wanted, progress=progress)
    return replace(found, figures=found.figures | logged_figures(logged))
