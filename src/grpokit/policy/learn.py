"""One step's learning: a step's updates, again for each iteration; and one update, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..batch.collate import collate, loss_batch, split_by_sample
from ..batch.cuts import Cut, Sharing, cut_samples
from ..batch.plan import weigh
from ..losses import Loss, Stats, UpdateStats
from ..losses.correction import Correction, diagnostics
from ..losses.ratio import clamp_log_ratio
from ..parallel import ALONE, World, full, reshard
from ..types import (
    Layout,
    Metric,
    Metrics,
    MicroBatch,
    RolloutGroup,
    Sample,
    TokenScores,
    Update,
    join_metrics,
)
from .policy import Policy
from .reference import Reference


class NonFiniteError(ValueError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


@dataclasses.dataclass(frozen=True, eq=False)
class Offender:
    """The micro-batch behind a loss or gradient that is not finite: what a replay needs, besides the weights."""

    samples: tuple[Sample, ...]
    stats: Stats | None
    what: str  # "loss" or "gradient"
    layout: Layout
    update: int = 1  # number of the update within its step, counted from 1


Dump = Callable[[Offender], Path]


@dataclasses.dataclass(frozen=True)
class Learning:
    """How to learn from a step: what `learn` needs of the configuration, and of the run around it."""

    num_iterations: int = 1
    micro_batch_tokens: int = 8192
    max_grad_norm: float = 1.0
    drop_dead_rows: bool = True
    seed: int = 0  # of selections by chance
    packed: bool = False  # micro-batches without padding
    share: Sharing = "never"  # prompts once for all their completions
    skips_left: int = 0  # updates that may still be skipped because their numbers went wrong
    world: World = ALONE
    pause: Callable[[], None] | None = None  # between micro-batches, on all ranks; may raise to stop there
    dump: Dump | None = None  # writes an offending micro-batch


@dataclasses.dataclass
class StepProgress:
    """How far a step has come: what a checkpoint in its midst holds. `learn` moves it, one update at a time."""

    updates: list[Update]
    groups: Sequence[RolloutGroup] = ()
    prepared: bool = False  # the log-probs that the step's start must give are in `updates`
    done: int = 0  # updates behind it, over all iterations, skipped ones included
    skipped: int = 0
    metrics: Metrics = dataclasses.field(default_factory=dict)
    torn: bool = False  # an optimizer step is under way: the weights belong to no finished update


def learn(
    policy: Policy,
    reference: Reference | None,
    progress: StepProgress,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    how: Learning,
) -> Metrics:
    """Make `num_iterations` passes over a step's updates, one optimizer step each; metrics over all of them.

    `old` is the policy at the start of the step, for every update. In the first one it is the policy itself:
    nothing is computed for it, and what its forward finds is kept for later passes. The other updates of the
    first pass meet a policy that has moved, so they are scored before it does.
    """
    if not progress.prepared:
        prepare(policy, reference, progress, loss, how)
    again = how.num_iterations > 1
    for n in range(progress.done, how.num_iterations * len(progress.updates)):
        update = progress.updates[n % len(progress.updates)]
        try:
            report, logps = optimize(policy, update, loss, optimizer, how, progress)
            report["skipped_updates"] = Metric.sum(torch.zeros(()))
            if loss.rejected_tokens == "drop":  # measured before they left
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
    """Before the weights move: the log-probs that are of the step's start, and what they reject."""
    updates, metrics = list(progress.updates), progress.metrics
    if loss.rejected_tokens == "drop":
        old = [score(policy, update.samples, how) for update in updates]
        for update, found in zip(updates, old, strict=True):
            metrics = join_metrics(metrics, sampler_mismatch(update.samples, found, loss))
        updates = [
            drop_rejected(u, found, loss, how.world.size) for u, found in zip(updates, old, strict=True)
        ]
    if reference is not None:
        updates = [fill_logps(u, "ref_logps", score(reference, u.samples, how)) for u in updates]
    updates[1:] = [
        fill_logps(u, "old_logps", score(policy, samples_to_score(u, loss, how), how)) for u in updates[1:]
    ]
    progress.updates, progress.metrics, progress.prepared = (
        updates,
        metrics,
        True,
    )  # at once: any scoring may be stopped


def optimize(
    policy: Policy,
    update: Update,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    how: Learning,
    progress: StepProgress | None = None,
) -> tuple[Metrics, dict[int, Tensor]]:
    """One optimizer step. Returns the update's metrics and the log-probs this rank met: sample index → [T_i].

    Raises NonFiniteError before the weights are touched where the loss or the gradient is NaN or infinite.
    """
    samples = samples_to_train(update, loss, how)
    stats, logps = (
        gather_stats(policy, update, loss, how) if loss.needs_stats and update.samples else (None, {})
    )
    policy.train()
    zero_gradients(policy)
    metrics: Metrics = {"loss": Metric.sum(torch.zeros(()))}
    cut = cut_of(samples, how)
    for micro in iter_micro_batches(cut, how, policy):
        scores, output = policy(micro, loss, stats)
        output.loss.backward()  # shares add up: no division by the number of micro-batches
        metrics = join_metrics(metrics, output.metrics)
        logps |= split_by_sample(micro, scores.logps)
    metrics = how.world.join_metrics(metrics)
    norm = full(torch.nn.utils.clip_grad_norm_(policy.parameters(), how.max_grad_norm or float("inf")))
    value = metrics["loss"].value
    if not (math.isfinite(value) and math.isfinite(norm)):
        number = 1 if progress is None else progress.done + 1
        raise non_finite(
            policy, samples, loss, stats, how, f"loss {value}, gradient norm {float(norm)}", number
        )
    if progress is not None:
        progress.torn = True
    optimizer.step()
    policy.version += 1
    kept = sum(sample.length for sample in samples)
    if how.world.size > 1:
        metrics["time/imbalance"] = Metric.max(torch.tensor([cut.imbalance]))
    return metrics | {
        # one loss for each update of the step
        "loss": Metric.mean(torch.tensor([value], dtype=torch.float64)),
        "grad_norm": Metric.mean(norm[None]),
        "frac_tokens_dropped": Metric.share(update.num_tokens - kept, update.num_tokens),
    }, logps


def cut_of(samples: Iterable[Sample], how: Learning) -> Cut:
    """How all ranks' micro-batches of `samples` are cut."""
    return cut_samples(
        samples, how.micro_batch_tokens, packed=how.packed, share=how.share, ranks=how.world.size
    )


def iter_micro_batches(cut: Cut, how: Learning, policy: Reference) -> Iterator[MicroBatch]:
    """This rank's micro-batches, with a pause before each."""
    for samples in cut.parts[how.world.rank]:
        if how.pause is not None:
            how.pause()
        yield collate(samples, cut.layout, policy.device)


def non_finite(
    policy: Policy,
    samples: Sequence[Sample],
    loss: Loss,
    stats: Stats | None,
    how: Learning,
    what: str,
    update: int = 1,
) -> NonFiniteError:
    """The error to raise, once the first micro-batch behind it is found, on any rank, and written down.

    Each is run again alone: nothing had to be kept, or checked, while the numbers were right.
    """
    said: list[str] = []
    for micro in iter_micro_batches(cut_of(samples, how), how, policy):
        zero_gradients(policy)
        _, output = policy(micro, loss, stats)
        output.loss.backward()
        bad_share = not math.isfinite(output.loss.detach())
        norms = [full(p.grad.norm()) for p in policy.parameters() if p.grad is not None]
        bad_gradient = not all(math.isfinite(norm) for norm in norms)  # the sum of all ranks' shares
        bad_anywhere = how.world.any(bad_share)
        if micro.samples and how.dump is not None and (bad_share or (bad_gradient and not bad_anywhere)):
            whose = "loss" if bad_share else "gradient"
            said.append(_write_dump(how.dump, Offender(micro.samples, stats, whose, micro.layout, update)))
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
    """Write it down, and the sentence that says where; a full disk must not hide what is wrong."""
    try:
        return f" The micro-batch is in {dump(offender)}: `grpokit replay` runs it again."
    except OSError as error:
        return f" The micro-batch could not be written: {error}."


def samples_to_train(update: Update, loss: Loss, how: Learning) -> tuple[Sample, ...]:
    """Samples that can move the weights: those with A = 0 leave before the forward where they weigh nothing."""
    if not (how.drop_dead_rows and loss.drops_dead_rows):
        return update.samples
    return tuple(sample for sample in update.samples if sample.advantage != 0)


def samples_to_score(update: Update, loss: Loss, how: Learning) -> tuple[Sample, ...]:
    """Samples whose log-probs are asked for: all of them where statistics are taken over the whole update."""
    return update.samples if loss.needs_stats else samples_to_train(update, loss, how)


@torch.no_grad()
def gather_stats(
    policy: Policy, update: Update, loss: Loss, how: Learning
) -> tuple[Stats, dict[int, Tensor]]:
    """What the update's tokens must know of each other, from a pass over all its samples; and their log-probs.

    Dead samples are in it too: they move nothing, but the others' statistics are over them as well.
    """
    parts: list[UpdateStats] = []
    logps: dict[int, Tensor] = {}
    for micro, scores in iter_scores(policy, update.samples, how, with_entropy=loss.needs_entropies):
        parts.append(UpdateStats.of(loss, loss_batch(micro, scores)))
        logps |= split_by_sample(micro, scores.logps)
    mine = UpdateStats.across_ranks(parts)[0].tokens
    ranks = [
        UpdateStats(
            dataclasses.replace(mine, **{name: value.to(policy.device) for name, value in part.items()})
        )
        for part in how.world.gather_tensors(mine.tensors())
    ]
    return UpdateStats.across_ranks(ranks)[0].finish(loss, how.seed, policy.version), logps


def sampler_mismatch(samples: Iterable[Sample], old: Mapping[int, Tensor], loss: Loss) -> Metrics:
    """How far the sampler is from the trainer, over all tokens, where the rejected ones leave before the loss sees any."""
    found: Metrics = {}
    assert loss.correction is not None
    for sample in samples:
        found = join_metrics(found, diagnostics(*log_weights(sample, old, loss.correction), loss.correction))
    return found


def drop_rejected(update: Update, old: Mapping[int, Tensor], loss: Loss, ranks: int = 1) -> Update:
    """The update without the tokens that the correction's mask rejects, weighed anew from what is left.

    `old` is sample index → [T_i], the trainer's log-probs at the start of the step.
    """
    assert loss.correction is not None
    samples = []
    for sample in update.samples:
        kept = ~loss.correction.rejects(log_weights(sample, old, loss.correction)[1])
        trainable = torch.zeros_like(sample.trainable)
        trainable[torch.nonzero(sample.trainable).flatten()[kept]] = True
        samples.append(
            dataclasses.replace(
                sample, trainable=trainable, sampler_logps=sample.sampler_logps[kept], length=int(kept.sum())
            )
        )
    return weigh(samples, loss, ranks)


def log_weights(sample: Sample, old: Mapping[int, Tensor], correction: Correction) -> tuple[Tensor, Tensor]:
    """log(old / sampler) of a sample's tokens [T_i], and what the correction's level makes of it [T_i]."""
    of_token = clamp_log_ratio(old[sample.index] - sample.sampler_logps)
    return of_token, correction.of_sequence(of_token).expand_as(of_token)


def zero_gradients(policy: Policy) -> None:
    """Zeros, not None: AdamW skips None but moves on zeros, so an update of dead samples does the same either way."""
    for parameter in filter(lambda p: p.requires_grad, policy.parameters()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()


@torch.no_grad()
def iter_scores(
    policy: Reference, samples: Iterable[Sample], how: Learning, with_entropy: bool = False
) -> Iterator[tuple[MicroBatch, TokenScores]]:
    """This rank's micro-batches of `samples`, with what a forward without gradient says of them."""
    for micro in iter_micro_batches(cut_of(samples, how), how, policy):
        yield micro, policy(micro, with_entropy=with_entropy)[0]
    reshard(policy)  # only a backward would have done it


@torch.no_grad()
def score(policy: Reference, samples: Iterable[Sample], how: Learning) -> dict[int, Tensor]:
    """Log-probs of the samples' trainable tokens under `policy`, all ranks' together: sample index → [T_i]. No gradient."""
    found: dict[int, Tensor] = {}
    for micro, scores in iter_scores(policy, samples, how):
        found |= split_by_sample(micro, scores.logps)
    return how.world.gather_by_index(found)


def fill_logps(update: Update, name: str, logps: Mapping[int, Tensor]) -> Update:
    """The update with `name` (old_logps or ref_logps) of its samples filled in, where `logps` has them."""
    samples = (
        dataclasses.replace(r, **{name: logps[r.index]}) if r.index in logps else r for r in update.samples
    )
    return dataclasses.replace(update, samples=tuple(samples))
