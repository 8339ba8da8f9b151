"""What a run will take: memory of a rank, its micro-batches, and what it sends, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...config.checks import check_train_config
from ...config.options import PlanConfig
from ...logprobs.chunks import CHUNK_BYTES, CHUNK_ROWS
from ...losses import Loss
from ...policy.lora import attach
from ...policy.policy import DTYPES, resolve_dtype
from ...training.setup.loss import lora_from_config, loss_from_config
from .footprint import Activations, Group, Sizes, activations_of, sizes_of

# Of each completion and vocabulary entry while a token is picked: logits, log-probs in float32; probs, their sum in float64.
PICKING_BYTES = 4 + 4 + 8 + 8
# What travels of a token: its id, log-prob, entropy, mask and text (about 4 letters); its statistics where losses have some.
ROLLOUT_BYTES = 8 + 4 + 4 + 1 + 4
STATISTICS_BYTES = 5 * 8 + 5 * 4
PROMPT = 256  # tokens of a prompt, where nobody says
# Left free for what no formula knows: the device's context, buffers of collectives, an allocator's holes.
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
    """Some memory of a rank, and the phase in which it is taken."""

    phase: str
    name: str
    bytes: float


@dataclass(frozen=True)
class Types:
    """Of what is computed in, and of frozen parameters; of trained ones and optimizer state; and of saved weights."""

    compute: torch.dtype
    master: torch.dtype
    saved: torch.dtype

    def bytes(self, part: Group | Sizes, ranks: int = 1) -> int:
        """What one of `ranks` ranks keeps of some parameters."""
        trained = part.trained.shard(ranks)
        return (part.shard(ranks) - trained) * self.compute.itemsize + trained * self.master.itemsize


@dataclass(frozen=True)
class Batch:
    """An update's rows as one rank meets them, all of the mean length; the fullest rank's."""

    rows: int
    length: int  # tokens of a row, prompt included
    micro_batches: int
    rows_of_each: int

    @property
    def tokens(self) -> int:
        """Of one full micro-batch."""
        return self.rows_of_each * self.length

    def fill(self, budget: int) -> float:
        """The share of the micro-batches' budget that holds tokens."""
        return self.rows * self.length / (self.micro_batches * budget)


@dataclass(frozen=True)
class Plan:
    """The numbers; all of memory and traffic are bytes of one rank."""

    config: PlanConfig
    sizes: Sizes
    reference: Sizes
    activations: Activations
    types: Types
    batch: Batch
    memory: tuple[Part, ...]
    traffic: dict[str, float]  # received in one step, by purpose
    host: float  # memory that rank 0's host needs for a checkpoint

    def phase(self, name: str) -> float:
        """Bytes while a phase lasts: its own, and what is always there."""
        return sum(part.bytes for part in self.memory if part.phase in (ALWAYS, name))

    @property
    def peak(self) -> float:
        """Bytes of the dearest phase."""
        return max(self.phase(part.phase) for part in self.memory)

    @property
    def room(self) -> float:
        """Bytes of --device_memory that may be used; 0 where it isn't given."""
        return self.config.device_memory * 2**30 * (1 - HEADROOM)


def check_plan_config(config: PlanConfig) -> None:
    """Raise ValueError naming the first flag that cannot work: what `grpokit train` refuses, and the plan's own."""
    if config.model and Path(config.model).is_dir():  # data and rewards are nobody's business here
        needless = {
            "dataset": config.model,
            "eval_dataset": "",
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


def prompt_tokens(config: PlanConfig) -> int:
    """Mean length of a prompt."""
    return PROMPT if config.prompt_tokens is None else config.prompt_tokens


def completion_tokens(config: PlanConfig) -> int:
    """Mean length of a completion."""
    given = config.completion_tokens
    return config.max_completion_length if given is None else given


def make_plan(config: PlanConfig, model: Any, reference: Any = None) -> Plan:
    """The plan of a checked configuration for a model on the meta device (and another reference, where it has one).

    Raises ValueError where the lengths don't fit the model's context.
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
        attach(model, lora, frozen=compute, trained=master)
    activations = activations_of(model, *fullest(config), compute, master)
    sizes = sizes_of(model)
    other = sizes if reference is None else sizes_of(reference)
    return _plan(config, sizes, other, activations, Types(compute, master, stored))


def batch_of(config: PlanConfig, length: int) -> Batch:
    """How an update of rows of `length` tokens is cut on the rank that has the most of them, as `micro_batches` does it."""
    update = config.prompts_per_step * config.num_generations // config.updates_per_step
    rows = -(-update // config.ranks)
    of_each = min(rows, max(1, config.micro_batch_tokens // length))
    return Batch(rows, length, -(-rows // of_each), of_each)


def fullest(config: PlanConfig) -> tuple[int, int]:
    """Rows and tokens of each in the micro-batch that takes the most memory: of mean rows, or of the longest."""
    lengths = {prompt_tokens(config) + n for n in (completion_tokens(config), config.max_completion_length)}
    batch = max((batch_of(config, length) for length in lengths), key=lambda b: (b.tokens, b.length))
    return batch.rows_of_each, batch.length


def again(plan: Plan, **changes: Any) -> Plan:
    """The plan with some flags changed; activations are scaled from those that were measured, not measured anew."""
    config = replace(plan.config, **changes)
    return _plan(config, plan.sizes, plan.reference, plan.activations.scaled(*fullest(config)), plan.types)


def _plan(config: PlanConfig, sizes: Sizes, reference: Sizes, activations: Activations, types: Types) -> Plan:
    batch = batch_of(config, prompt_tokens(config) + completion_tokens(config))
    parts = (
        *_state(config, sizes, reference, types),
        *_sampling(config, sizes, activations, types),
        *_learning(config, sizes, activations, types),
    )
    return Plan(
        config=config,
        sizes=sizes,
        reference=reference,
        activations=activations,
        types=types,
        batch=batch,
        memory=tuple(part for part in parts if part.bytes),
        traffic=_traffic(config, sizes, reference, batch, types, loss_from_config(config)),
        host=_host(config, sizes, types),
    )


def _host(config: PlanConfig, sizes: Sizes, types: Types) -> float:
    """Bytes of weights and moments that rank 0's host holds while it writes a checkpoint."""
    trained = sizes.trained.numel * (3 * types.master.itemsize)
    if config.lora_save == "adapter":
        return trained
    # Beside the weights as they are gathered, and as they are written, those that have an adapter in its type.
    frozen = sizes.numel - sizes.trained.numel
    added = types.master.itemsize if frozen else 0
    return trained + frozen * (types.compute.itemsize + added) + sizes.numel * types.saved.itemsize


def _state(config: PlanConfig, sizes: Sizes, reference: Sizes, types: Types) -> Iterator[Part]:
    """What is there from the first update to the last."""
    ranks, size = config.shard_size or config.ranks, types.master.itemsize
    shard = sizes.trained.shard(ranks)
    loaded = config.beta and (config.ref_model or not config.lora_r)  # else the policy without its adapter
    yield Part(ALWAYS, "parameters", types.bytes(sizes, ranks))
    yield Part(ALWAYS, "gradients", shard * size)
    yield Part(ALWAYS, "AdamW's two moments", 2 * shard * size)
    yield Part(ALWAYS, "reference", reference.shard(ranks) * size if loaded else 0)
    yield Part(STEPPING, "square roots of the second moments", shard * size)


def _sampling(config: PlanConfig, sizes: Sizes, activations: Activations, types: Types) -> Iterator[Part]:
    """While completions are sampled: all weights at once, or copies in the compute type where one rank has them already."""
    if config.sampler == "vllm":  # elsewhere, or in memory of its own from beginning to end
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
    yield Part(SAMPLING, "their prompts in one layer", max(prefill.layers, default=0))
    yield Part(SAMPLING, "picking a token of each", together * sizes.vocabulary * PICKING_BYTES)


def _layers(sizes: Sizes, types: Types) -> int:
    """Bytes of all layers in the compute type."""
    return sum(group.numel for group in sizes.layers) * types.compute.itemsize


def _copies(sizes: Sizes, types: Types) -> int:
    """Bytes of the copies in the compute type that autocast makes of layers which have another."""
    return _layers(sizes.trained, types) if types.compute != types.master else 0


def _learning(config: PlanConfig, sizes: Sizes, activations: Activations, types: Types) -> Iterator[Part]:
    """While a micro-batch is learned from: its activations are largest when the head is, the root's gradients at the end."""
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


def _traffic(
    config: PlanConfig, sizes: Sizes, reference: Sizes, batch: Batch, types: Types, loss: Loss
) -> dict[str, float]:
    """Bytes that a rank receives in a step, by purpose. Scalars (norms, counts, metrics) are left out."""
    ranks = config.shard_size or config.ranks
    copies, size = config.ranks // ranks, types.master.itemsize
    updates, passes = config.updates_per_step, config.updates_per_step * config.num_iterations
    forwards = batch.micro_batches * passes
    scorings = updates - 1 + (updates if loss.rejected_tokens == "drop" else 0)
    scorings += passes if loss.needs_stats else 0

    def gathered(part: Sizes, layers: int, roots: int) -> float:
        inside = sum(group.shard(ranks) for group in part.layers) * types.compute.itemsize
        return (ranks - 1) * (layers * inside + roots * types.bytes(part.root, ranks))

    shard = sizes.trained.shard(ranks) * size
    of_step = config.prompts_per_step * config.num_generations * completion_tokens(config)
    logps = updates - 1 + bool(config.num_iterations > 1) + (updates if config.beta else 0)
    logps += updates if loss.rejected_tokens == "drop" else 0
    statistics = config.num_iterations * STATISTICS_BYTES if loss.needs_stats else 0
    data = of_step * (ROLLOUT_BYTES + statistics + size * logps / updates)
    return {
        "gather weights for forward and backward": gathered(sizes, 2 * forwards, forwards),
        "scatter gradients": forwards * (ranks - 1) * shard,
        "add up gradients of the replicas": forwards * 2 * (copies - 1) / copies * shard,
        "gather weights to score": gathered(sizes, scorings * batch.micro_batches, scorings),
        "gather the reference's weights": gathered(reference, updates * batch.micro_batches, updates)
        if config.beta
        else 0.0,
        "gather weights to sample": gathered(sizes, 1, 1),
        "the step's data": data * (config.ranks - 1) / config.ranks,
    }
