"""grpokit: GRPO training in which every policy loss is one row of a table, and a step has one gradient.

Train from Python with `GRPOTrainer`, or in one call with `train`; `evaluate` measures a model, and `compare_runs` tells which
runs differ. The losses alone, for a trainer of your own, are in `grpokit.losses`. Everything heavy is imported at the first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .common import VERSION as __version__

if TYPE_CHECKING:
    from .commands.compare.outcome import compare_runs
    from .config.options import EvalConfig, TrainConfig
    from .training.callbacks import Callback
    from .training.trainer import GRPOTrainer, evaluate, train

_HOMES = {
    "GRPOTrainer": "training.trainer",
    "train": "training.trainer",
    "evaluate": "training.trainer",
    "compare_runs": "commands.compare.outcome",
    "Callback": "training.callbacks",
    "TrainConfig": "config.options",
    "EvalConfig": "config.options",
}

__all__ = [
    "Callback",
    "EvalConfig",
    "GRPOTrainer",
    "TrainConfig",
    "__version__",
    "compare_runs",
    "evaluate",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'grpokit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
