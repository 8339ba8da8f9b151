"""What all episodes of a sampler share: the parser, the limits, the workers, the tools and the environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.form import PLAIN, PromptForm
from .calls import TurnParser
from .contract import EnvironmentKind
from .tools import Tool
from .workers import Workers


@dataclass(frozen=True)
class Limits:
    """What bounds an episode. Example: `Limits(max_turns=4, max_tokens=1024, tool_timeout=60.0, max_tool_tokens=512)`"""

    max_turns: int
    max_tokens: int  # after the prompt, those of the environment included
    tool_timeout: float  # seconds, for each call; 0: none
    max_prompt: int | None  # the most tokens of a prompt, with what `reset` adds; None: any number
    max_tool_tokens: int  # the most tokens of one tool's answer; 0: any number


@dataclass(frozen=True)
class Setting:
    """What all episodes of a sampler share. `make_setting` makes one from a configuration."""

    tokenizer: Any
    parser: TurnParser
    limits: Limits
    workers: Workers
    seed: int
    eos_ids: frozenset[int]
    tools: Mapping[str, Tool]
    kinds: Mapping[str, EnvironmentKind]  # by the value of a row's column `environment`; "" for a single one
    form: PromptForm = PLAIN  # how prompts are written
