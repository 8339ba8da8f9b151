"""Imports another trainer, in the version that was tested."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_tested(trainer: str, tested: str, *modules: str) -> list[Any]:
    """Imports a trainer's modules.

    Args:
        trainer: its package, which is also the name of grpokit's module for it and of the extra that installs it.
        tested: the version that was tested, such as "1.16".
        *modules: modules of it.

    Returns:
        The modules.

    Raises:
        ImportError: the trainer is missing, or has another version.
    """
    install = f"pip install 'grpokit[{trainer}]'"
    try:
        package, *found = (import_module(name) for name in (trainer, *modules))
    except ImportError as error:
        raise ImportError(
            f"grpokit.integrations.{trainer} needs {trainer} {tested}, and it can't be imported ({error}): {install}"
        ) from error
    if package.__version__.split(".")[:2] != tested.split("."):
        raise ImportError(
            f"{trainer} {package.__version__}: what grpokit's losses use of it changes between versions, and {tested} is the "
            f"tested one: {install}"
        )
    return found
