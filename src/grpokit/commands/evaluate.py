"""`grpokit eval`: evaluates one model, or compares several."""

from __future__ import annotations

from ..config.checks import check_model_config
from ..config.options import EvalConfig


def check(config: EvalConfig) -> None:
    """Raises ValueError naming an option that cannot work. The models of --models are checked later, before any is loaded."""
    if config.models and config.model:
        raise ValueError(
            f"--models {' '.join(config.models)}: replaces --model; leave one of the two options out"
        )
    if not config.models:
        check_model_config(config)


def evaluate(config: EvalConfig) -> None:
    """Evaluates, and prints a table."""
    from ..training.compare_models import compare_models
    from ..training.evaluate_model import evaluate_model

    if config.models:
        compare_models(config)
    else:
        evaluate_model(config)
