"""The bytes that a rank receives in a planned step."""

from __future__ import annotations

from collections.abc import Sequence

from ...config.options import PlanConfig
from ..setup.loss import loss_from_config
from .batch import Batch, completion_tokens
from .footprint import Sizes, Types
from .held import matrices

# Bytes sent per token: its id, log-prob, entropy, mask and text (about 4 letters). Losses with statistics send those
# too.
ROLLOUT_BYTES = 8 + 4 + 4 + 1 + 4
STATISTICS_BYTES = 5 * 8 + 5 * 4


def traffic_of(
    config: PlanConfig,
    sizes: Sizes,
    reference: Sizes,
    teachers: Sequence[Sizes],
    batch: Batch,
    types: Types,
) -> dict[str, float]:
    """Returns the bytes that a rank receives in a step, by purpose, without scalars (norms, counts, metrics).

    Args:
        config: the options.
        sizes: the policy's.
        reference: the reference's.
        teachers: the teachers', each of which scores its part of the step once.
        batch: how an update is cut.
        types: the dtypes.
    """
    loss = loss_from_config(config)
    ranks = config.shard_size or config.ranks
    copies, size = config.ranks // ranks, types.master.itemsize
    updates, passes = config.updates_per_step, config.updates_per_step * config.num_iterations
    forwards = batch.micro_batches * passes
    scorings = updates - 1 + (updates if loss.rejected_tokens == "drop" else 0)
    scorings += updates if config.kl_in_reward else 0
    scorings += passes if loss.needs_stats or config.router_aux_loss_coef else 0

    def gathered(part: Sizes, layers: float, roots: int) -> float:
        inside = sum(group.shard(ranks) for group in part.layers) * types.compute.itemsize
        return (ranks - 1) * (layers * inside + roots * types.bytes(part.root, ranks))

    shard = sizes.trained.shard(ranks) * size
    muon = matrices(sizes.trained).shard(ranks) * size if config.optim == "muon" else 0.0
    of_step = config.prompts_per_step * config.num_generations * completion_tokens(config)
    logps = updates - 1 + bool(config.num_iterations > 1) + (updates if config.beta else 0)
    logps += updates * (config.kl_in_reward + (len(config.teacher) > 0))
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
        "gather the teachers' weights": sum(
            gathered(teacher, updates * batch.micro_batches / len(teachers), 1) for teacher in teachers
        ),
        "gather weights to sample": gathered(sizes, 1, 1),
        "gather matrices to orthogonalise": muon * passes * (ranks - 1),
        "the step's data": data * (config.ranks - 1) / config.ranks,
    }
