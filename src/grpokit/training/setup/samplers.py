"""The engine that samples for a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...parallel import World
from ...policy.policy import Policy
from ...rollouts.ahead import SampleAhead
from ...rollouts.sampler import Sampler
from ...rollouts.transformers import TransformersSampler
from ...runs.directory import rollouts_differ
from ...types import RolloutGroup

if TYPE_CHECKING:
    from ...rollouts.vllm.engine import Engine


def make_sampler(
    config: ModelConfig, policy: Policy, tokenizer: Any, seed: int, stop: Callable[[], bool] = lambda: False
) -> TransformersSampler:
    """The sampler of a configuration."""
    return TransformersSampler(
        policy,
        tokenizer,
        seed=seed,
        max_completion_length=config.max_completion_length,
        min_completion_length=config.min_completion_length,
        stop_strings=config.stop,
        rollout_batch_size=config.rollout_batch_size,
        decode=config.decode,
        share_prefill=config.share_prefill,
        stop=stop,
    )


def sampler_factory(
    config: TrainConfig, policy: Policy, tokenizer: Any, stop: Callable[[], bool], world: World, longest: int
) -> Callable[[int], Sampler]:
    """Seed → a sampler of the run's engine, for sequences of up to `longest` tokens, prompt included.

    Raises ValueError where --sampler vllm finds no server, or no vLLM.
    """
    if config.sampler == "transformers":
        return lambda seed: make_sampler(config, policy, tokenizer, seed, stop)
    from ...rollouts.vllm.engine import VLLMSampler, WeightSync

    engine = make_engine(config, policy, world, longest)
    weights = WeightSync(engine, policy, tokenizer, config.vllm_max_gap, config.max_completion_length, world)
    return lambda seed: VLLMSampler(
        weights,
        seed=seed,
        max_completion_length=config.max_completion_length,
        min_completion_length=config.min_completion_length,
        stop_strings=config.stop,
        stop=stop,
    )


def make_engine(config: TrainConfig, policy: Policy, world: World, longest: int) -> Engine:
    """The vLLM of a configuration."""
    if config.vllm_mode == "colocate":
        from ...rollouts.vllm.colocated import Colocated

        return Colocated(
            config.model,
            policy,
            max_length=longest,
            memory=config.vllm_gpu_memory_utilization,
            trust_remote_code=config.trust_remote_code,
            world=world,
        )
    from ...rollouts.vllm.server import Server

    directory = Path(config.output_dir) / "vllm"
    if config.vllm_sync == "nccl":
        from ...rollouts.vllm.nccl import NcclServer

        return NcclServer(config.vllm_url, config.vllm_timeout, directory)
    return Server(config.vllm_url, config.vllm_timeout, directory, only_adapter=config.vllm_sync == "adapter")


def make_sample_ahead(
    config: TrainConfig,
    sampler: Any,
    saved: Sequence[RolloutGroup],
    checkpoint: Path | None,
    world: World,
) -> SampleAhead | None:
    """The run's sampler a step ahead, with --async_depth 1.

    `saved` are the rollouts, of all ranks, that `checkpoint` has for the step that is next: trained on if they are what
    the run would sample.
    """
    if saved and checkpoint and rollouts_differ(config, checkpoint):
        say("  sampled anew: the rollouts that the checkpoint has for its next step, for what changed since")
        saved = ()
    return SampleAhead(sampler, world, world.share(saved) if saved else None) if config.async_depth else None
