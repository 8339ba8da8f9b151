"""One step's learning: a step's updates, again for each iteration; and one update, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .batching import loss_batch, micro_batches, split_rows, weigh
from .losses import Loss, Stats, StepStats
from .losses.ratio import clamp_log_ratio
from .model import Policy
from .types import Metric, Metrics, Row, StepBatch, join_metrics


class NonFiniteError(ValueError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


@dataclasses.dataclass(frozen=True)
class Learning:
    """How to learn from a step: what `learn` needs of the configuration."""

    num_iterations: int = 1
    micro_batch_tokens: int = 8192
    max_grad_norm: float = 1.0
    drop_dead_rows: bool = True
    seed: int = 0  # of selections by chance


def learn(
    policy: Policy,
    reference: Policy | None,
    updates: Sequence[StepBatch],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    how: Learning,
) -> Metrics:
    """Make `num_iterations` passes over a step's updates, one optimizer step each; metrics over all of them.

    `old` is the policy at the start of the step, for every update. In the first one it is the policy itself:
    nothing is computed for it, and what its forward finds is kept for later passes. The other updates of the
    first pass meet a policy that has moved, so they are scored before it does.
    """
    updates = list(updates)
    if loss.rejected_tokens == "drop":
        updates = [drop_rejected(u, score(policy, u.rows, how), loss) for u in updates]
    if reference is not None:
        updates = [with_logps(u, "ref_logps", score(reference, u.rows, how)) for u in updates]
    again = how.num_iterations > 1
    updates[1:] = [with_logps(u, "old_logps", score(policy, seen(u, loss, how), how)) for u in updates[1:]]
    metrics: Metrics = {}
    for iteration in range(how.num_iterations):
        for k, update in enumerate(updates):
            report, logps = optimize(policy, update, loss, optimizer, how)
            metrics = join_metrics(metrics, report)
            if again and iteration == 0 and k == 0:
                updates[0] = with_logps(update, "old_logps", logps)
    return metrics


def optimize(
    policy: Policy, update: StepBatch, loss: Loss, optimizer: torch.optim.Optimizer, how: Learning
) -> tuple[Metrics, dict[int, Tensor]]:
    """One optimizer step. Returns the update's metrics and the log-probs it met: row index → [T_i].

    Raises NonFiniteError before the weights are touched where the loss or the gradient is NaN or infinite.
    """
    rows = needed(update, loss, how)
    stats, logps = statistics(policy, update, loss, how) if loss.needs_stats and update.rows else (None, {})
    policy.train()
    zero_gradients(policy)
    metrics: Metrics = {"loss": Metric.sum(torch.zeros(()))}
    for micro in micro_batches(rows, how.micro_batch_tokens, policy.device):
        scores, output = policy(micro, loss, stats)
        output.loss.backward()  # shares add up: no division by the number of micro-batches
        metrics = join_metrics(metrics, output.metrics)
        logps |= split_rows(micro, scores.logps)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), how.max_grad_norm or float("inf"))
    value = metrics["loss"].value
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise NonFiniteError(
            f"optimizer step {policy.version + 1}: loss {value}, gradient norm {float(norm)}: not finite numbers. The "
            "weights were not touched; a lower --learning_rate or --dtype float32 may help"
        )
    optimizer.step()
    policy.version += 1
    kept = sum(row.length for row in rows)
    return metrics | {
        "loss": Metric.mean(
            torch.tensor([value], dtype=torch.float64)
        ),  # one loss for each update of the step
        "grad_norm": Metric.mean(norm[None]),
        "frac_tokens_dropped": Metric.share(update.num_tokens - kept, update.num_tokens),
    }, logps


def needed(update: StepBatch, loss: Loss, how: Learning) -> tuple[Row, ...]:
    """Rows that can move the weights: those with A = 0 leave before the forward where they weigh nothing."""
    if not (how.drop_dead_rows and loss.drops_dead_rows):
        return update.rows
    return tuple(row for row in update.rows if row.advantage != 0)


def seen(update: StepBatch, loss: Loss, how: Learning) -> tuple[Row, ...]:
    """Rows whose log-probs are asked for: all of them where statistics are taken over the whole update."""
    return update.rows if loss.needs_stats else needed(update, loss, how)


@torch.no_grad()
def statistics(
    policy: Policy, update: StepBatch, loss: Loss, how: Learning
) -> tuple[Stats, dict[int, Tensor]]:
    """What the update's tokens must know of each other, from a pass over all its rows; and their log-probs.

    Dead rows are in it too: they move nothing, but the others' statistics are over them as well.
    """
    parts: list[StepStats] = []
    logps: dict[int, Tensor] = {}
    for micro in micro_batches(update.rows, how.micro_batch_tokens, policy.device):
        scores, _ = policy(micro, with_entropy=loss.needs_entropies)
        parts.append(StepStats.of(loss, loss_batch(micro, scores)))
        logps |= split_rows(micro, scores.logps)
    return StepStats.across_ranks(parts)[0].finish(loss, how.seed, policy.version), logps


def drop_rejected(update: StepBatch, old: Mapping[int, Tensor], loss: Loss) -> StepBatch:
    """The update without the tokens that the correction's mask rejects, weighed anew from what is left.

    `old` is row index → [T_i], the trainer's log-probs at the start of the step.
    """
    assert loss.correction is not None
    rows = []
    for row in update.rows:
        log_weight = clamp_log_ratio(old[row.index] - row.sampler_logps)
        kept = ~loss.correction.rejects(loss.correction.of_sequence(log_weight).expand_as(log_weight))
        trainable = torch.zeros_like(row.trainable)
        trainable[torch.nonzero(row.trainable).flatten()[kept]] = True
        rows.append(
            dataclasses.replace(
                row, trainable=trainable, sampler_logps=row.sampler_logps[kept], length=int(kept.sum())
            )
        )
    return weigh(rows, loss)


def zero_gradients(policy: Policy) -> None:
    """Zeros, not None: AdamW skips None but moves on zeros, so an update of dead rows does the same either way."""
    for parameter in policy.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()


@torch.no_grad()
def score(policy: Policy, rows: Iterable[Row], how: Learning) -> dict[int, Tensor]:
    """Log-probs of the rows' trainable tokens under `policy`: row index → [T_i]. No gradient."""
    found: dict[int, Tensor] = {}
    for micro in micro_batches(rows, how.micro_batch_tokens, policy.device):
        found |= split_rows(micro, policy(micro)[0].logps)
    return found


def with_logps(update: StepBatch, name: str, logps: Mapping[int, Tensor]) -> StepBatch:
    """The update with `name` (old_logps or ref_logps) of its rows filled in, where `logps` has them."""
    rows = (dataclasses.replace(r, **{name: logps[r.index]}) if r.index in logps else r for r in update.rows)
    return dataclasses.replace(update, rows=tuple(rows))
