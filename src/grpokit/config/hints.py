"""Hints for an option that a command doesn't know: its name here, the command that has it, or the nearest name."""

from __future__ import annotations

from dataclasses import fields

from ..common.text import did_you_mean
from .foreign import COUNTERPARTS, FOREIGN, NOT_NEEDED, RENAMED
from .options import TrainConfig

# Options of training that `grpokit eval` has under another name.
OF_EVAL = {
    "eval_dataset": "dataset",
    "eval_split": "dataset_split",
    "eval_samples": "max_samples",
    "eval_generations": "num_generations",
}


def hint(name: str, config: type) -> str:
    """Returns a hint in brackets for an unknown option, beginning with a space; "" where there is none.

    Args:
        name: the option.
        config: the configuration that has no such option.

    Example:
        >>> hint("model_name_or_path", TrainConfig)
        ' (of TRL or ms-swift: here it is --model)'
        >>> hint("max_step", TrainConfig)
        " (did you mean 'max_steps'?)"
    """
    known = {field.name for field in fields(config)}
    own = _name_in(name, known)
    if name in TrainConfig.__dataclass_fields__:
        return f" (an option of grpokit train{f'; here it is --{own}' if own else ''})"
    if name in FOREIGN:
        return f" (of TRL or ms-swift: {_counterpart(name, known)})"
    return did_you_mean(name, known)


def _name_in(name: str, known: set[str]) -> str:
    """Returns the name that an option of training has among `known`; "" where it has none."""
    found = OF_EVAL.get(name, name.removeprefix("eval_"))
    return found if found in known else ""


def _counterpart(name: str, known: set[str]) -> str:
    if name in NOT_NEEDED:
        return f"not needed here: {NOT_NEEDED[name]}"
    ours = RENAMED.get(name, "")
    if ours := ours if ours in known else _name_in(ours, known):
        return f"here it is --{ours}"
    return COUNTERPARTS.get(name, "see grpokit convert-config")
