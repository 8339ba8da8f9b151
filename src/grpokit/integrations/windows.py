"""An optimizer step of another trainer, in micro-batches of padded rows: its weights, statistics and metrics.

All are of the whole step, over all micro-batches and all ranks, and are known before the first backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..losses import Counts, Loss, LossBatch, Stats, UpdateStats, policy_loss, sequence_weights
from ..losses.stats import Tokens
from ..types import Metric, Metrics, join_metrics

# Takes a value of this rank, and returns those of all ranks, in rank order. Values are plain Python or on the CPU.
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Rows:
    """A micro-batch of B padded completions, before its forward pass.

    Example:
        >>> mask, ids = torch.tensor([[1, 1, 0], [0, 0, 0]]), torch.arange(2)
        >>> Rows(mask.bool(), torch.ones(2), ids, ids * 0).lengths
        tensor([2, 0])
    """

    mask: Tensor  # [B, T] bool, true for trainable tokens
    advantages: Tensor  # [B] or [B, T]
    sequence_ids: Tensor  # [B], unique in the step, over all ranks
    group_ids: Tensor  # [B]
    old_logps: Tensor | None = None  # [B, T]; None: on-policy
    ref_logps: Tensor | None = None  # [B, T]
    sampler_logps: Tensor | None = None  # [B, T]

    @property
    def lengths(self) -> Tensor:
        """[B] T_i, the trainable tokens of each completion."""
        return self.mask.sum(-1)

    def score(
        self, weights: Tensor, logps: Tensor, entropies: Tensor | None, needs_sampler: bool
    ) -> LossBatch:
        """Makes the loss's input.

        Args:
            weights: [B], from `Window.plan`.
            logps: [B, T] of the policy, with gradient.
            entropies: [B, T] of the policy.
            needs_sampler: whether the loss compares with the sampler. Where the sampler recorded nothing for a token, or
                nothing at all, the trainer's own log-prob stands in for it.
        """
        sampler, old = self.sampler_logps, self.old_logps
        own = logps.detach() if old is None else old
        if sampler is not None:
            sampler = torch.where(sampler.isnan(), own, sampler)
        elif needs_sampler:
            sampler = own
        return LossBatch.from_padded(
            self.mask,
            logps=logps,
            advantages=self.advantages,
            weights=weights,
            sequence_ids=self.sequence_ids,
            group_ids=self.group_ids,
            old_logps=old,
            ref_logps=self.ref_logps,
            sampler_logps=sampler,
            entropies=entropies,
        )


@dataclass
class Window:
    """The micro-batches of one optimizer step on this rank, of which `done` have been through the loss.

    Example:
        >>> from grpokit.losses import make_loss
        >>> one = Rows(torch.ones(1, 2).bool(), torch.ones(1), torch.tensor([0]), torch.tensor([0]))
        >>> window = Window.plan(make_loss("grpo"), [one], lambda value: [value])
        >>> float(window.share(torch.zeros(1, 2), None))
        -1.0
    """

    loss: Loss
    rows: list[Rows]
    weights: list[Tensor]  # [B] of each micro-batch
    gather: Gather
    stats: Stats | None = None
    done: int = 0
    metrics: Metrics = field(default_factory=dict)

    @classmethod
    def plan(cls, loss: Loss, rows: Sequence[Rows], gather: Gather) -> Window:
        """Computes the loss weights [B] of each micro-batch, from the counts of the whole step on all ranks. A collective.

        Args:
            loss: names the reduction.
            rows: this rank's micro-batches of the step.
            gather: collects a value of every rank.
        """
        counts = Counts.of(torch.cat([r.lengths for r in rows]), torch.cat([r.group_ids for r in rows]))
        per_rank = gather((counts.sequences, counts.tokens, dict(counts.group_tokens)))
        ranks = [Counts(sequences, tokens, tokens, 1, groups) for sequences, tokens, groups in per_rank]
        # Its totals are of all ranks, and its `rank_tokens` of this one.
        own = dataclasses.replace(Counts.across_ranks(ranks)[0], rank_tokens=counts.tokens)
        weights = [sequence_weights(loss, r.lengths, own, r.group_ids) for r in rows]
        return cls(loss, list(rows), weights, gather)

    def batch(self, index: int, logps: Tensor, entropies: Tensor | None) -> LossBatch:
        """Returns the loss's input for a micro-batch whose log-probs [B, T] and entropies [B, T] are given."""
        return self.rows[index].score(self.weights[index], logps, entropies, self.loss.needs_sampler)

    def fix_statistics(
        self, scores: Sequence[tuple[Tensor, Tensor | None]], seed: int = 0, version: int = 0
    ) -> None:
        """Computes what the loss must know about the whole step, over all ranks. A collective.

        Args:
            scores: (log-probs [B, T], entropies [B, T]) of each micro-batch, under the parameters at the step's start.
            seed: the run's seed. With `version`, it keys random selections.
            version: the number of optimizer steps so far.
        """
        batches = [self.batch(i, logps, entropies) for i, (logps, entropies) in enumerate(scores)]
        own = UpdateStats.join([UpdateStats.of(self.loss, batch) for batch in batches])
        device = own.tokens.logps.device
        tensors = self.gather({name: value.cpu() for name, value in own.tokens.tensors().items()})
        parts = [
            UpdateStats(Tokens(**{name: value.to(device) for name, value in part.items()}))
            for part in tensors
        ]
        self.stats = UpdateStats.join(parts).finish(self.loss, seed, version)

    def share(self, logps: Tensor, entropies: Tensor | None) -> Tensor:
        """Computes the next micro-batch's share of the step's loss. Shares of micro-batches and ranks are summed.

        Args:
            logps: [B, T] of the policy, with gradient.
            entropies: [B, T] of the policy.
        """
        batch = self.batch(self.done, logps, entropies)
        output = policy_loss(self.loss, batch, self.stats)
        metrics = dict(output.metrics)
        if batch.entropies is not None:
            metrics["entropy"] = Metric.mean(batch.entropies)
        self.metrics = join_metrics(self.metrics, metrics)
        self.done += 1
        return output.loss

    @property
    def is_complete(self) -> bool:
        """Checks whether every micro-batch has been through the loss."""
        return self.done == len(self.rows)

    def joined_metrics(self) -> dict[str, float]:
        """Returns the metrics of the whole step, over all ranks. A collective."""
        joined: Metrics = {}
        for part in self.gather({name: metric.to_json() for name, metric in self.metrics.items()}):
            joined = join_metrics(joined, {name: Metric.from_json(value) for name, value in part.items()})
        return {name: metric.value for name, metric in joined.items()}
