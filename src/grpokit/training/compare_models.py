"""Evaluates several models on the same prompts, and compares each with the first: `grpokit eval --models A B C`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..common.console import comparison_table, console, say
from ..config.checks import check_model_config
from ..config.options import EvalConfig
from ..runs.checkpoint import checkpoints
from .evaluate_model import measure_model, where_of, write_figures
from .evaluation import Evaluation, half_width
from .setup.parts import Parts

DIFFERENCE = "eval/pass@1_difference"  # the mean over prompts of the difference to the first model


def compare_models(config: EvalConfig, parts: Parts | None = None) -> dict[str, dict[str, float]]:
    """Evaluates each of --models, prints one table, and writes the figures where --output_file says.

    All models answer the same prompts with the same noise, so differences are taken prompt by prompt. Their interval is much
    narrower than that of two separate evaluations.

    Args:
        config: the configuration, checked for the first model.
        parts: rows and functions from Python.

    Returns:
        Model → its figures, with the paired difference of pass@1 to the first model and its interval.

    Raises:
        ValueError: a model can't be loaded or evaluated. All names are checked before the first one is evaluated.
    """
    names = expand_runs(config.models)
    each = [replace(config, model=name, models=()) for name in names]
    for one in each:
        check_model_config(one, from_python=parts is not None)
    found: dict[str, Evaluation] = {}
    for number, one in enumerate(each, 1):
        say(f"model {number} of {len(each)}: {one.model}")
        found[one.model] = measure_model(one, parts)
    first = found[names[0]]
    figures = {name: {**each.figures, **paired(each, first)} for name, each in found.items()}
    title = f"{len(names)} models on {where_of(config, first)}; differences to the first"
    console.print(comparison_table(figures, title))
    write_figures(config.output_file, figures)
    return figures


def expand_runs(names: Sequence[str]) -> list[str]:
    """Returns the models to evaluate. A run's directory is replaced by its checkpoints, best/ and final/.

    Raises:
        ValueError: a model is named twice.
    """
    models: list[str] = []
    for name in names:
        inside = [*checkpoints(Path(name)), Path(name) / "best", Path(name) / "final"]
        found = [str(path) for path in inside if (path / "config.json").is_file()]
        found += [str(p) for p in inside if str(p) not in found and (p / "adapter_config.json").is_file()]
        is_model = any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json"))
        models += [name] if is_model or not found else found
    twice = next((name for name in models if models.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--models {twice}: is named twice")
    return models


def paired(one: Evaluation, first: Evaluation) -> dict[str, float]:
    """Returns the mean difference of pass@1 over the prompts that both have answered, and half the width of its 95 % interval.

    Example:
        >>> one, first = {"a.jsonl:1": 0.5, "a.jsonl:2": 1.0}, {"a.jsonl:1": 0.25, "a.jsonl:2": 0.75}
        >>> paired(Evaluation({}, one), Evaluation({}, first))[DIFFERENCE]
        0.25
    """
    pairs = [(share, first.by_prompt[row]) for row, share in one.by_prompt.items() if row in first.by_prompt]
    differences = [a - b for a, b in pairs if not (math.isnan(a) or math.isnan(b))]
    mean = sum(differences) / len(differences) if differences else math.nan
    return {DIFFERENCE: mean, f"{DIFFERENCE}_ci95": half_width(differences)}
