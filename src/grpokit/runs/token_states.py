"""The names of the files of recorded tokens, and the states of a token in them. Importing this imports nothing heavy."""

from __future__ import annotations

import re

FOLDER = "tokens"  # in a run's directory

STATES = ("trained", "clipped", "masked", "no advantage", "not the model's", "not known")
TRAINED, CLIPPED, MASKED, NO_ADVANTAGE, NOT_OURS, UNKNOWN = range(len(STATES))


def file_name(step: int) -> str:
    """Returns the name of a step's file.

    Example:
        >>> file_name(12), step_of(file_name(12)), step_of("step-000012 (copy).safetensors")
        ('step-000012.safetensors', 12, None)
    """
    return f"step-{step:06d}.safetensors"


def step_of(name: str) -> int | None:
    """Returns the step of a file of recorded tokens; None for a file of another name."""
    match = re.fullmatch(r"step-(\d+)\.safetensors", name)
    return int(match[1]) if match else None
