"""The configurations of train, eval and plan: frozen dataclasses, made of groups of options.

Nothing heavy is imported here: `grpokit --help` is built from these files. Flags on the command line win over the YAML
file of `--config`, which wins over the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .judge_options import JudgeOptions
from .model_options import (
    DataOptions,
    EngineOptions,
    EpisodeOptions,
    LoraOptions,
    ModelOptions,
    RewardOptions,
    SamplingOptions,
)
from .teacher_options import TeacherOptions
from .train_options import (
    AdvantageOptions,
    BatchOptions,
    CheckpointOptions,
    CorrectionOptions,
    EvaluationOptions,
    HubOptions,
    LoggingOptions,
    LossOptions,
    OptimizerOptions,
    RankOptions,
)

# A dataclass lists the fields of its last base first: read the bases from below.


@dataclass(frozen=True)
class ModelConfig(SamplingOptions, EpisodeOptions, JudgeOptions, RewardOptions, DataOptions, ModelOptions):
    """The options that training and evaluation share."""


@dataclass(frozen=True)
class TrainConfig(
    HubOptions,
    CheckpointOptions,
    LoggingOptions,
    EvaluationOptions,
    RankOptions,
    OptimizerOptions,
    BatchOptions,
    CorrectionOptions,
    AdvantageOptions,
    LossOptions,
    TeacherOptions,
    EngineOptions,
    LoraOptions,
    ModelConfig,
):
    """Train a language model by GRPO with any loss of the family.

    Example:
        >>> TrainConfig(model="models/Qwen", loss_type="dapo", max_steps=60).epsilon_high is None
        True
    """


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """Say what a training run takes, from a model's config.json alone: memory, micro-batches, communication."""

    ranks: int = 1
    """Processes of the run: hosts × GPUs of each."""
    device: Literal["cuda", "cpu"] = "cuda"
    """The device of a rank: it decides what --dtype auto is, and how much of the logits is held at once."""
    device_memory: float = 0.0
    """Memory of one rank's device in GiB (0: unknown). The plan then says whether the run fits, and what would help."""
    prompt_tokens: int | None = None
    """Mean length of the prompts (default: 256, or what the model's context leaves)."""
    completion_tokens: int | None = None
    """Mean length of the completions (default: --max_completion_length)."""


@dataclass(frozen=True)
class EvalConfig(ModelConfig):
    """Evaluate a model: pass@1 greedy and sampled, and pass@k."""

    models: tuple[str, ...] = ()
    """Several models to compare in one table, in place of --model. A run's directory stands for its checkpoints and models."""
    num_generations: int = 8
    """Sampled completions of each prompt (n of the pass@k estimator)."""
    pass_at_k: tuple[int, ...] = ()
    """Values of k to report, for maj@k too (default: 1 and --num_generations)."""
    output_file: str = ""
    """Also write the figures to this JSON file."""
