"""Learning from a step: its updates, repeated for each iteration; and one update, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch.collate import split_by_sample
from ..common.shards import full
from ..losses import Loss
from ..types import (
    Metric,
    Metrics,
    RolloutGroup,
    Sample,
    Update,
    join_metrics,
)
from .first_pass import first_pass
from .mismatch import drop_rejected, micro_mismatch, sampler_mismatch
from .policy import Policy
from .reference import Reference
from .scoring import (
    Dump,
    FirstPass,
    Learning,
    NonFiniteError,
    Offender,
    cut_of,
    fill_logps,
    iter_micro_batches,
    samples_to_score,
    samples_to_train,
    score,
)


@dataclasses.dataclass
class StepProgress:
    """How far a step has come. A checkpoint within a step stores it, and `learn` advances it update by update."""

    updates: list[Update]
    groups: Sequence[RolloutGroup] = ()
    prepared: bool = False  # the log-probs of the step's start are filled in
    done: int = 0  # finished updates over all iterations, skipped ones included
    skipped: int = 0
    metrics: Metrics = dataclasses.field(default_factory=dict)
    torn: bool = False  # an optimizer step is in progress, so the weights cannot be saved


def learn(
    policy: Policy,
    reference: Reference | None,
    progress: StepProgress,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    how: Learning,
) -> Metrics:
    """Makes `num_iterations` passes over a step's updates, one optimizer step each.

    `old` is the policy at the start of the step, for every update. In the first update it is the policy itself, so nothing
    is computed for it, and its forward's log-probs are kept for later passes. The other updates see a policy that has
    already moved, so they are scored before the first one.

    Args:
        policy, reference: the models; the reference is None without a KL penalty.
        progress: the step's updates and how far they have come; advanced in place.
        loss, optimizer, how: the loss, the policy's optimizer and the options.

    Returns:
        Metrics over all updates.
    """
    if not progress.prepared:
        prepare(policy, reference, progress, loss, how)
    again = how.num_iterations > 1
    for n in range(progress.done, how.num_iterations * len(progress.updates)):
        update = progress.updates[n % len(progress.updates)]
        try:
            report, logps = optimize(policy, update, loss, optimizer, how, progress)
            report["skipped_updates"] = Metric.sum(torch.zeros(()))
            if loss.rejected_tokens == "drop":  # measured before they were dropped
                report = {name: metric for name, metric in report.items() if not name.startswith("sampler")}
        except NonFiniteError:
            if progress.skipped >= how.skips_left:
                raise
            report, logps = {"skipped_updates": Metric.sum(torch.ones(()))}, {}
            if again and n == 0:
                logps = score(policy, samples_to_score(update, loss, how), how)
            progress.skipped += 1
        if again and n == 0:
            progress.updates[0] = fill_logps(update, "old_logps", how.world.gather_by_index(logps))
        progress.metrics = join_metrics(progress.metrics, report)
        progress.done, progress.torn = n + 1, False
    return progress.metrics


def prepare(
    policy: Policy, reference: Reference | None, progress: StepProgress, loss: Loss, how: Learning
) -> None:
    """Computes `old` and `ref` log-probs with the weights at the step's start.

    With `rejected_tokens="drop"`, it also drops the tokens that the correction masks.

    Args:
        policy: the model that is trained.
        reference: the reference model, or None.
        progress: the step; changed in place.
        loss: the loss.
        how: the settings of learning.
    """
    updates, metrics = list(progress.updates), progress.metrics
    if loss.rejected_tokens == "drop":
        old = [score(policy, update.samples, how) for update in updates]
        for update, found in zip(updates, old, strict=True):
            metrics = join_metrics(metrics, sampler_mismatch(update.samples, found, loss))
        updates = [
            drop_rejected(u, found, loss, how.world.size) for u, found in zip(updates, old, strict=True)
        ]
    if reference is not None and loss.beta:
        updates = [fill_logps(u, "ref_logps", score(reference, u.samples, how)) for u in updates]
    updates[1:] = [
        fill_logps(u, "old_logps", score(policy, samples_to_score(u, loss, how), how)) for u in updates[1:]
    ]
    # All at once, because any scoring may be stopped.
    progress.updates, progress.metrics, progress.prepared = updates, metrics, True


def optimize(
    policy: Policy,
    update: Update,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    how: Learning,
    progress: StepProgress | None = None,
) -> tuple[Metrics, dict[int, Tensor]]:
    """Takes one optimizer step.

    Args:
        policy: the model that is trained.
        update: the update.
        loss: the loss.
        optimizer: the optimizer.
        how: the settings of learning.
        progress: the step; marked while the weights move (None: no checkpoint is written meanwhile).

    Returns:
        The update's metrics of all ranks, and this rank's log-probs: sample index → [T_i].

    Raises:
        NonFiniteError: the loss or the gradient is NaN or infinite; the weights have not changed.
    """
    samples = samples_to_train(update, loss, how)
    whole, logps = first_pass(policy, update, loss, how)
    zero_gradients(policy)
    metrics: Metrics = {"loss": Metric.sum(torch.zeros(()))}
    cut = cut_of(samples, how)
    for micro in iter_micro_batches(cut, how, policy):
        scores, output = policy(micro, loss, whole.stats, balance=whole.balance)
        output.loss.backward()  # shares add up: no division by the number of micro-batches
        metrics = join_metrics(metrics, output.metrics)
        logps |= split_by_sample(micro, scores.logps)
        metrics = join_metrics(metrics, micro_mismatch(micro, scores.logps, loss, how.sampled))
    metrics = how.world.join_metrics(metrics)
    norm = full(torch.nn.utils.clip_grad_norm_(policy.parameters(), how.max_grad_norm or float("inf")))
    value = metrics["loss"].value
    if not (math.isfinite(value) and math.isfinite(norm)):
        number = 1 if progress is None else progress.done + 1
        raise non_finite(
            policy, samples, loss, whole, how, f"loss {value}, gradient norm {float(norm)}", number
        )
    if progress is not None:
        progress.torn = True
    optimizer.step()
    policy.version += 1
    if how.observe is not None and progress is not None:
        how.observe(progress.done % len(progress.updates), update, logps, whole.stats)
    kept = sum(sample.length for sample in samples)
    if how.world.size > 1:
        metrics["time/imbalance"] = Metric.max(torch.tensor([cut.imbalance]))
    # one value per update of the step
    once = {
        name: Metric.mean(metric.parts[0][None])
        for name, metric in metrics.items()
        if name in ("loss", "aux_loss") or name.startswith("loss/")
    }
    return metrics | {
        **once,
        "grad_norm": Metric.mean(norm[None]),
        "frac_tokens_dropped": Metric.share(update.num_tokens - kept, update.num_tokens),
    }, logps


def non_finite(
    policy: Policy,
    samples: Sequence[Sample],
    loss: Loss,
    whole: FirstPass,
    how: Learning,
    what: str,
    update: int = 1,
) -> NonFiniteError:
    """Finds and writes the first micro-batch, on any rank, that is not finite.

    Runs each micro-batch again alone, so nothing has to be kept or checked while the numbers are right.

    Args:
        policy: the model that is trained.
        samples: the samples of the update.
        loss: the loss.
        whole: what the first pass has fixed.
        how: the settings of learning.
        what: the numbers that are not finite, for the message.
        update: the update's number within its step, counted from 1.

    Returns:
        The error to raise.
    """
    said: list[str] = []
    for micro in iter_micro_batches(cut_of(samples, how), how, policy):
        zero_gradients(policy)
        _, output = policy(micro, loss, whole.stats, balance=whole.balance)
        output.loss.backward()
        bad_share = not math.isfinite(output.loss.detach())
        norms = [full(p.grad.norm()) for p in policy.parameters() if p.grad is not None]
        bad_gradient = not all(math.isfinite(norm) for norm in norms)  # the sum of all ranks' shares
        bad_anywhere = how.world.any(bad_share)
        if micro.samples and how.dump is not None and (bad_share or (bad_gradient and not bad_anywhere)):
            whose = "loss" if bad_share else "gradient"
            said.append(_write_dump(how.dump, Offender(micro.samples, whole, whose, micro.layout, update)))
        if bad_anywhere or bad_gradient:
            break
    zero_gradients(policy)
    everywhere = [sentence for of_rank in how.world.gather_json(said) for sentence in of_rank]
    return NonFiniteError(
        f"optimizer step {policy.version + 1}: {what}: not finite numbers. The weights were not touched; a lower "
        "--learning_rate may help, and --max_skipped_steps N skips up to N such updates."
        + "".join(everywhere[:1])
    )


def _write_dump(dump: Dump, offender: Offender) -> str:
    """Writes it and returns a sentence that says where. A full disk must not hide the error itself."""
    try:
        return f" The micro-batch is in {dump(offender)}: `grpokit replay` runs it again."
    except OSError as error:
        return f" The micro-batch could not be written: {error}."


def zero_gradients(policy: Policy) -> None:
    """Sets gradients to zeros, not None. AdamW skips None, so an update of dead samples would differ."""
    for parameter in filter(lambda p: p.requires_grad, policy.parameters()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()
