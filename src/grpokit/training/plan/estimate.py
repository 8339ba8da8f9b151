"""Estimates what a run needs before any weight is loaded: a rank's memory, its micro-batches, and what it sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...config.checks import check_train_config
from ...config.options import PlanConfig
from ...config.rules import has_model
from ...logprobs.chunks import CHUNK_BYTES, CHUNK_ROWS
from ...policy.freeze import freeze
from ...policy.lora import attach
from ...policy.lora_targets import choose_modules
from ...policy.policy import DTYPES, resolve_dtype
from ...policy.probes import router_coefficient
from ..setup.loss import lora_from_config
from .batch import PROMPT, Batch, batch_of, completion_tokens, fullest, prompt_tokens
from .footprint import Activations, Sizes, Types, activations_of, sizes_of
from .held import optimizer_state, optimizer_step, without_4_bits
from .traffic import traffic_of

# Bytes per completion and vocabulary entry while a token is picked: logits and log-probs in float32, probs and their
# cumulative sum in float64.
PICKING_BYTES = 4 + 4 + 8 + 8
# Kept free for what no formula covers: the device's context, collectives' buffers, the allocator's fragments.
HEADROOM = 0.1

ALWAYS, SAMPLING, LEARNING, REDUCING, STEPPING = (
    "always",
    "sampling",
    "a micro-batch, at the start of its backward",
    "a micro-batch, at the end of its backward",
    "the optimizer's step",
)


@dataclass(frozen=True)
class Part:
    """Some memory of a rank, and the phase that needs it."""

    phase: str
    name: str
    bytes: float


@dataclass(frozen=True)
class Plan:
    """The estimate. Memory and traffic are bytes of one rank."""

    config: PlanConfig
    sizes: Sizes
    reference: Sizes
    teachers: tuple[Sizes, ...]  # those that the run loads
    activations: Activations
    types: Types
    batch: Batch
    memory: tuple[Part, ...]
    traffic: dict[str, float]  # bytes received in one step, by purpose
    host: float  # memory that rank 0's host needs for a checkpoint

    def phase(self, name: str) -> float:
        """Returns the bytes in use during a phase: its own, and what is always in use."""
        return sum(part.bytes for part in self.memory if part.phase in (ALWAYS, name))

    @property
    def peak(self) -> float:
        """Bytes of the phase that needs most."""
        return max(self.phase(part.phase) for part in self.memory)

    @property
    def room(self) -> float:
        """Bytes of --device_memory that may be used; 0 if it is not given."""
        return self.config.device_memory * 2**30 * (1 - HEADROOM)


def check_plan_config(config: PlanConfig) -> None:
    """Checks the options: everything that `grpokit train` refuses, and the plan's own.

    Raises:
        ValueError: a flag cannot work. The message names it.
    """
    if has_model(config.model):  # a plan needs neither data nor rewards
        needless = {
            "dataset": config.model,
            "eval_dataset": (),
            "eval_reward_funcs": (),
            "reward_funcs": ("any",),
            "reward_weights": (),
        }
        check_train_config(replace(config, **needless, shard_size=0))
    else:
        check_train_config(replace(config, reward_funcs=("any",)))
    for flag, value in (("ranks", config.ranks), ("prompt_tokens", prompt_tokens(config))):
        if value < 1:
            raise ValueError(f"--{flag} {value}: must be at least 1")
    if config.shard_size < 0 or (config.shard_size and config.ranks % config.shard_size):
        raise ValueError(
            f"--shard_size {config.shard_size}: must divide the number of ranks, --ranks {config.ranks}"
        )
    if not 1 <= completion_tokens(config) <= config.max_completion_length:
        raise ValueError(
            f"--completion_tokens {config.completion_tokens}: must be between 1 and --max_completion_length "
            f"{config.max_completion_length}"
        )
    if config.device_memory < 0:
        raise ValueError(f"--device_memory {config.device_memory}: must be 0 (unknown) or more, in GiB")


def make_plan(config: PlanConfig, model: Any, reference: Any = None, teachers: Sequence[Any] = ()) -> Plan:
    """Makes the plan of a checked configuration.

    Args:
        config: the options, checked by `check_plan_config`.
        model: the model on the meta device.
        reference: another reference model on the meta device; None: the same one.
        teachers: the teachers that the run loads, on the meta device.

    Raises:
        ValueError: the lengths do not fit the model's context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if config.prompt_tokens is None and context is not None:
        room = max(1, context - config.max_completion_length)
        config = replace(config, prompt_tokens=min(PROMPT, room))
    longest = prompt_tokens(config) + config.max_completion_length
    if context is not None and longest > context:
        raise ValueError(
            f"--max_completion_length {config.max_completion_length}: with --prompt_tokens {prompt_tokens(config)} that is "
            f"{longest} tokens, and the model's context is {context}; lower one of them"
        )
    compute = resolve_dtype(config.dtype, torch.device(config.device))
    master = torch.float64 if compute == torch.float64 else torch.float32
    stored = DTYPES[config.save_dtype] if config.save_dtype else model.dtype
    lora = lora_from_config(config)
    if lora is not None:
        attach(model, choose_modules(model, lora)[0], frozen=compute, trained=master)
    freeze(model, config.freeze_parameters, config.trainable_parameters)
    config = replace(config, router_aux_loss_coef=router_coefficient(model, config.router_aux_loss_coef))
    activations = activations_of(model, *fullest(config), compute, master)
    types = Types(compute, master, stored, frozen=master if lora is None else compute)
    sizes = sizes_of(model)
    other = sizes if reference is None else sizes_of(reference)
    return _plan(config, sizes, other, tuple(map(sizes_of, teachers)), activations, types)


def again(plan: Plan, **changes: Any) -> Plan:
    """Returns the plan with some flags changed. Activations are scaled, not measured again."""
    config = replace(plan.config, **changes)
    activations = plan.activations.scaled(*fullest(config))
    return _plan(config, plan.sizes, plan.reference, plan.teachers, activations, plan.types)


def _plan(
    config: PlanConfig,
    sizes: Sizes,
    reference: Sizes,
    teachers: tuple[Sizes, ...],
    activations: Activations,
    types: Types,
) -> Plan:
    """Makes the plan. Takes what a `Plan` has.

    Args:
        config: see `Plan`, as all others.
        sizes: the policy's.
        reference: the reference's.
        teachers: the teachers'.
        activations: of the policy's forward.
        types: the dtypes.
    """
    batch = batch_of(config, prompt_tokens(config) + completion_tokens(config))
    held, packed = without_4_bits(config, sizes)
    parts = (
        Part(ALWAYS, "weights in 4 bits, whole on every rank", packed),
        *_state(config, held, reference, types),
        _of_teachers(config, teachers, types),
        *_sampling(config, held, activations, types),
        *_learning(config, held, activations, types),
    )
    return Plan(
        config=config,
        sizes=sizes,
        reference=reference,
        teachers=teachers,
        activations=activations,
        types=types,
        batch=batch,
        memory=tuple(part for part in parts if part.bytes),
        traffic=traffic_of(config, held, reference, teachers, batch, types),
        host=_host(config, sizes, types),
    )


def _host(config: PlanConfig, sizes: Sizes, types: Types) -> float:
    """Returns the bytes of weights and moments on rank 0's host while it writes a checkpoint."""
    trained = sizes.trained.numel * (3 * types.master.itemsize)
    if config.lora_save == "adapter":
        return trained
    # The weights are held twice, as gathered and as written. Weights with an adapter are also merged in its dtype.
    frozen = sizes.numel - sizes.trained.numel
    added = types.master.itemsize if frozen else 0
    return trained + frozen * (types.compute.itemsize + added) + sizes.numel * types.saved.itemsize


def _state(config: PlanConfig, sizes: Sizes, reference: Sizes, types: Types) -> Iterator[Part]:
    """Yields what exists from the first update to the last."""
    ranks, size = config.shard_size or config.ranks, types.master.itemsize
    shard = sizes.trained.shard(ranks)
    # Otherwise the policy without its adapter is the reference.
    loaded = config.beta and (config.ref_model or not config.lora_r)
    yield Part(ALWAYS, "parameters", types.bytes(sizes, ranks))
    yield Part(ALWAYS, "gradients", shard * size)
    yield Part(ALWAYS, *optimizer_state(config, sizes.trained, ranks, size))
    yield Part(ALWAYS, "reference", reference.shard(ranks) * size if loaded else 0)
    yield Part(STEPPING, *optimizer_step(config, sizes.trained, ranks, size))


def _of_teachers(config: PlanConfig, teachers: Sequence[Sizes], types: Types) -> Part:
    """Returns the shards of the teachers, which are held as a reference is."""
    ranks = config.shard_size or config.ranks
    return Part(ALWAYS, "teachers", sum(teacher.shard(ranks) for teacher in teachers) * types.master.itemsize)


def _sampling(config: PlanConfig, sizes: Sizes, activations: Activations, types: Types) -> Iterator[Part]:
    """Yields what sampling needs: all weights gathered, or on one rank their copies in the compute dtype."""
    if config.sampler == "vllm":  # vLLM runs elsewhere, or in memory of its own for the whole run
        inside = config.vllm_gpu_memory_utilization if config.vllm_mode == "colocate" else 0
        yield Part(ALWAYS, "vLLM in this process", inside * config.device_memory * 2**30)
        return
    sharded = config.ranks > 1
    whole = _layers(sizes, types) if sharded else _copies(sizes, types)
    together = min(
        config.rollout_batch_size, -(-config.prompts_per_step // config.ranks) * config.num_generations
    )
    prefill = activations.scaled(together, prompt_tokens(config))
    yield Part(SAMPLING, "whole weights", whole + (types.bytes(sizes.root) if sharded else 0))
    tokens = together * (prompt_tokens(config) + config.max_completion_length)
    yield Part(SAMPLING, f"key-value cache of {together} completions", tokens * activations.cache)
    if config.tools or config.environment:
        kept = min(config.turn_cache_gib * 2**30, tokens * activations.cache)
        yield Part(SAMPLING, "keys and values kept from turn to turn", kept)
    yield Part(SAMPLING, "their prompts in one layer", max(prefill.layers, default=0))
    yield Part(SAMPLING, "picking a token of each", together * sizes.vocabulary * PICKING_BYTES)


def _layers(sizes: Sizes, types: Types) -> int:
    """Returns the bytes of all layers in the compute dtype."""
    return sum(group.numel for group in sizes.layers) * types.compute.itemsize


def _copies(sizes: Sizes, types: Types) -> int:
    """Returns the bytes of the copies in the compute dtype that autocast makes of layers in another dtype."""
    return _layers(sizes.trained, types) if types.compute != types.master else 0


def _learning(config: PlanConfig, sizes: Sizes, activations: Activations, types: Types) -> Iterator[Part]:
    """Yields what a micro-batch needs. Activations are largest when the head runs; the root's gradients come at the end."""
    layer, size = sizes.largest_layer, types.master.itemsize
    root, tokens = types.bytes(sizes.root), activations.rows * activations.length
    trained = sizes.trained
    rows = max(CHUNK_ROWS, CHUNK_BYTES[config.device] // (sizes.vocabulary * size))
    if config.ranks > 1:
        yield Part(
            LEARNING, "gathered: root, and a layer and the next", root + 2 * layer * types.compute.itemsize
        )
        yield Part(LEARNING, "a layer's gradients, whole and to be sent", 2 * trained.largest_layer * size)
        yield Part(REDUCING, "gathered root", root)
        yield Part(REDUCING, "the root's gradients, whole and to be sent", 2 * trained.root.numel * size)
    else:
        yield Part(LEARNING, "autocast's copies of the layers' weights", _copies(sizes, types))
    yield Part(LEARNING, "activations", activations.kept(config.gradient_checkpointing))
    yield Part(LEARNING, "head: a chunk of logits", min(rows, tokens) * sizes.vocabulary * size)
    head = sizes.vocabulary if trained.root.numel else 0  # an adapter has no part in the head
    gradients = (head + 2 * tokens) * sizes.hidden * size
    yield Part(LEARNING, "head: weight's gradient, inputs and theirs", gradients)
