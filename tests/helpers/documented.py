"""Commands as the docs and recipes give them."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from grpokit.config.options import TrainConfig

FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}

# Flags that recipes and guides use, and that this version's command line may not have yet.
COMING = {
    *("lora_r", "lora_alpha", "lora_target_modules", "lora_save", "stop", "trust_remote_code"),
    *("vllm_mode", "vllm_gpu_memory_utilization", "vllm_sync", "async_depth"),
}


def skip_what_is_coming(text: str) -> None:
    """Skip a test whose recipe or command uses a flag that isn't there yet."""
    waiting = sorted(
        flag for flag in COMING - FIELDS if re.search(rf"^{flag}:|--{flag}\b", text, re.MULTILINE)
    )
    if waiting:
        pytest.skip(f"there is no {', '.join(waiting)} yet")


def arguments_of(command: str) -> list[str] | None:
    """The words after `grpokit`, or None for a command of another program; `#` begins a comment, as in a shell."""
    words = shlex.split(command, comments=True)
    return words[words.index("grpokit") + 1 :] if "grpokit" in words else None
