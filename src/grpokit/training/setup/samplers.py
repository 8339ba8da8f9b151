"""Makes the engine that samples for a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...config.sampled import for_evaluation, shaping_flags
from ...parallel import World
from ...policy.policy import Policy
from ...rollouts.ahead import SampleAhead
from ...rollouts.sampler import Sampler
from ...rollouts.shaping import Shaping
from ...rollouts.transformers import TransformersSampler
from ...runs.directory import rollouts_differ
from ...types import RolloutGroup
from .parts import SamplerFactory, call_factory

if TYPE_CHECKING:
    from ...rollouts.vllm.engine import Engine

# Added to the seed: evaluation draws its own noise, and an environment makes other tasks for it.
EVAL_SEED = 1_000_003


def make_sampler(
    config: ModelConfig, policy: Policy, tokenizer: Any, seed: int, stop: Callable[[], bool] = lambda: False
) -> TransformersSampler:
    """Makes the sampler that runs the policy itself. `stop` is asked while it samples, and ends it.

    Args:
        config: the lengths, stop strings and batch size.
        policy: the model that is trained.
        tokenizer: its tokenizer.
        seed: keys the noise of every token.
        stop: asked while it samples; True ends it.

    Returns:
        The sampler.
    """
    return TransformersSampler(
        policy,
        tokenizer,
        seed=seed,
        max_completion_length=config.max_completion_length,
        min_completion_length=config.min_completion_length,
        stop_strings=config.stop,
        shaping=shaping_of(config),
        temperature=config.temperature,
        rollout_batch_size=config.rollout_batch_size,
        decode=config.decode,
        share_prefill=config.share_prefill,
        turn_cache=int(config.turn_cache_gib * 2**30),
        stop=stop,
    )


def shaping_of(config: ModelConfig) -> Shaping:
    """Returns how a configuration shapes the distribution that is sampled from."""
    return Shaping(config.top_p, config.top_k, config.min_p, config.repetition_penalty)


def sampler_factory(
    config: TrainConfig,
    policy: Policy,
    tokenizer: Any,
    stop: Callable[[], bool],
    world: World,
    longest: int,
    own: Sampler | SamplerFactory | None = None,
) -> Callable[[int, TrainConfig], Sampler]:
    """Prepares the run's engine.

    Args:
        config: --sampler and its options.
        policy: the model to sample from.
        tokenizer: its tokenizer.
        stop: asked while it samples; True ends it.
        world: the ranks.
        longest: tokens of the longest prompt and completion together.
        own: a sampler of the user's, or a function that makes one.

    Returns:
        A function: (seed, configuration) → a sampler of that engine, whose noise has that seed. Lengths, stop strings,
        temperature, truncation and penalty are the configuration's, which may be `for_evaluation`.

    Raises:
        ValueError: --sampler vllm finds no server, or no vLLM.
    """
    if own is not None and hasattr(own, "sample") and not isinstance(own, type):
        _refuse_shaping(config)
        return lambda seed, config: own  # pyright: ignore[reportReturnType]
    if own is not None:
        return lambda seed, config: call_factory(
            own,  # pyright: ignore[reportArgumentType]
            policy=policy,
            tokenizer=tokenizer,
            config=config,
            seed=seed,
        )
    if config.sampler == "transformers":
        return lambda seed, config: make_sampler(config, policy, tokenizer, seed, stop)
    from ...rollouts.vllm.engine import WeightSync
    from ...rollouts.vllm.sampler import VLLMSampler

    engine = make_engine(config, policy, world, longest)
    weights = WeightSync(engine, policy, tokenizer, config.vllm_max_gap, config.max_completion_length, world)
    return lambda seed, config: VLLMSampler(
        weights,
        seed=seed,
        max_completion_length=config.max_completion_length,
        min_completion_length=config.min_completion_length,
        stop_strings=config.stop,
        shaping=shaping_of(config),
        temperature=config.temperature,
        stop=stop,
    )


def _refuse_shaping(config: TrainConfig) -> None:
    """Raises ValueError for sampling options that a sampler object would not see."""
    given = shaping_flags(config) or (
        "evaluation's own sampling options" if for_evaluation(config) != config else ""
    )
    if given:
        raise ValueError(
            f"{given}: the sampler is an object, which samples by itself; pass a function that makes it from the configuration"
        )


def make_engine(config: TrainConfig, policy: Policy, world: World, longest: int) -> Engine:
    """Makes the vLLM engine of a configuration, for sequences of up to `longest` tokens.

    Args:
        config: the options of vLLM.
        policy: the model that is trained.
        world: the ranks.
        longest: tokens of the longest prompt and completion together.

    Returns:
        The engine.
    """
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
    """Makes the sampler that works one step ahead, with --async_depth 1.

    Args:
        config: the run's configuration.
        sampler: the engine.
        saved: the rollouts of all ranks that the checkpoint holds for the next step. They are trained on where the run
            would still sample the same ones.
        checkpoint: where the run resumes from, if it does.
        world: the ranks.

    Returns:
        The sampler, or None with --async_depth 0.
    """
    if saved and checkpoint and rollouts_differ(config, checkpoint):
        say(
            "  the checkpoint's rollouts for the next step are discarded and resampled, because sampling options changed"
        )
        saved = ()
    return SampleAhead(sampler, world, world.share(saved) if saved else None) if config.async_depth else None
