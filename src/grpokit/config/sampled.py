"""The distribution that completions are sampled from: how it differs from the trained one, and its form for evaluation."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Literal

from .model_options import SamplingOptions
from .options import ModelConfig, TrainConfig

Sampled = Literal["full", "part", "other"]
"""What a token was drawn from: the full tempered distribution, a part of its tokens, or another distribution."""

# Options that make the sampled distribution differ from the trained one, each with the value that does nothing.
NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_completion_length": 0,
}


def shaping_flags(config: ModelConfig) -> str:
    """Names the options that make the sampled distribution differ from the full one; "" where they are the same.

    Example:
        >>> shaping_flags(TrainConfig(top_p=0.9, min_completion_length=4))
        '--top_p 0.9 --min_completion_length 4'
    """
    values = {name: getattr(config, name) for name in NEUTRAL}
    return " ".join(f"--{name} {value:g}" for name, value in values.items() if value != NEUTRAL[name])


def sampled_from(config: ModelConfig) -> Sampled:
    """Names the distribution of completions: "other" with a repetition penalty, "part" with any other option of `NEUTRAL`."""
    if config.repetition_penalty != NEUTRAL["repetition_penalty"]:
        return "other"
    return "part" if shaping_flags(config) else "full"


def for_evaluation(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with evaluation's own sampling options in the place of training's.

    Example:
        >>> for_evaluation(TrainConfig(temperature=1.0, eval_temperature=0.6)).temperature
        0.6
    """
    prefix = "eval_"
    names = {f.name for f in fields(SamplingOptions)}
    own = {
        f.name.removeprefix(prefix): getattr(config, f.name)
        for f in fields(TrainConfig)
        if f.name.startswith(prefix) and f.name.removeprefix(prefix) in names
    }
    return replace(config, **{name: value for name, value in own.items() if value is not None})
