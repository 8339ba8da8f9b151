"""Chooses the parameters that are trained: --freeze_parameters and --trainable_parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..common.text import did_you_mean


def freeze(model: Any, frozen: Sequence[str], trainable: Sequence[str]) -> None:
    """Freezes each parameter whose name matches a pattern in `frozen`, unless it also matches one in `trainable`.

    A tied tensor has several names. It matches if any of them does.

    Args:
        model: the model, changed in place.
        frozen: regular expressions, searched in names.
        trainable: regular expressions that win.

    Raises:
        ValueError: a pattern matches no name, or nothing is left to train.
    """
    if not frozen:
        return
    named = list(model.named_parameters(remove_duplicate=False))
    names = [name for name, _ in named]
    for flag, patterns in (("freeze_parameters", frozen), ("trainable_parameters", trainable)):
        for pattern in patterns:
            if not _matches(pattern, names):
                shown = ", ".join([names[0], names[len(names) // 2], names[-1]])
                raise ValueError(
                    f"--{flag} {pattern}: no parameter of {type(model).__name__} has such a name"
                    f"{did_you_mean(pattern, names)}; there are {len(names)}, such as {shown}"
                )
    stopped = {id(p) for name, p in named if any(re.search(pattern, name) for pattern in frozen)}
    trained = {id(p) for name, p in named if any(re.search(pattern, name) for pattern in trainable)}
    for _, parameter in named:
        parameter.requires_grad_(id(parameter) not in stopped or id(parameter) in trained)
    if not any(parameter.requires_grad for _, parameter in named):
        raise ValueError(
            f"--freeze_parameters {' '.join(frozen)}: freezes all parameters; add --trainable_parameters, or name fewer"
        )


def _matches(pattern: str, names: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for name in names)
