"""Groups → updates with fixed weights, then micro-batches by token budget. Only the first decides any number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .losses import Counts, Loss, LossBatch, sequence_weights
from .types import MicroBatch, RolloutGroup, Row, StepBatch, TokenScores


def plan_step(groups: Sequence[RolloutGroup], loss: Loss, updates_per_step: int = 1) -> list[StepBatch]:
    """A step's groups in `updates_per_step` updates of whole groups, each with its weights fixed for good."""
    size = -(-len(groups) // updates_per_step)
    return [plan_update(groups[start : start + size], loss) for start in range(0, len(groups), size)]


def plan_update(groups: Sequence[RolloutGroup], loss: Loss) -> StepBatch:
    """One update: its sequences as rows, weighed before anything is cut."""
    rows = [
        Row(
            index=index,
            group=number,
            prompt_ids=group.prompt.ids,
            completion_ids=rollout.completion_ids,
            trainable=rollout.trainable,
            advantage=float(_advantages(group)[g]),
            weight=0.0,
            length=int(rollout.trainable.sum()),
            sampler_logps=rollout.logps[rollout.trainable],
        )
        for index, (number, g, group, rollout) in enumerate(
            (number, g, group, rollout)
            for number, group in enumerate(groups)
            for g, rollout in enumerate(group.rollouts)
        )
    ]
    return weigh(rows, loss)


def weigh(rows: Sequence[Row], loss: Loss) -> StepBatch:
    """An update's rows with w_i of every sequence, from the counts of all of them.

    A sequence without trainable tokens has no weight and isn't counted, so it's left out here.
    """
    lengths = torch.tensor([row.length for row in rows], dtype=torch.int64)
    group_ids = torch.tensor([row.group for row in rows], dtype=torch.int64)
    counts = Counts.across_ranks([Counts.of(lengths, group_ids)])[0]
    weights = sequence_weights(loss, lengths, counts, group_ids)
    weighed = (dataclasses.replace(row, weight=float(w)) for row, w in zip(rows, weights, strict=True))
    return StepBatch(tuple(row for row in weighed if row.length), counts.tokens)


def _advantages(group: RolloutGroup) -> Tensor:
    if group.advantages is None:
        raise ValueError(f"{group.prompt.source}: the group has no advantages yet; with_advantages first")
    return group.advantages


def micro_batches(rows: Iterable[Row], budget: int, device: torch.device | str = "cpu") -> list[MicroBatch]:
    """Rows in forwards of at most `budget` tokens, padding included; a longer row goes alone.

    Sorted by length, so that little is padded. How the rows are cut changes no result: their weights are fixed.
    """
    cut: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.num_tokens):  # each new row is the longest of its micro-batch
        if not cut or (len(cut[-1]) + 1) * row.num_tokens > budget:
            cut.append([])
        cut[-1].append(row)
    return [_collate(part, device) for part in cut]


def _collate(rows: Sequence[Row], device: torch.device | str) -> MicroBatch:
    """Right-padded inputs, and the trainable tokens of all rows in flat lists [N]."""
    input_ids = torch.zeros(len(rows), max(row.num_tokens for row in rows), dtype=torch.int64)
    lengths = torch.tensor([row.length for row in rows])
    columns, positions, targets = [], [], []
    for b, row in enumerate(rows):
        prompt = torch.tensor(row.prompt_ids, dtype=torch.int64)
        input_ids[b, : row.num_tokens] = torch.cat([prompt, row.completion_ids])
        position = torch.nonzero(row.trainable).flatten()
        positions.append(position)
        columns.append(len(prompt) + position - 1)  # the hidden state before a token predicts it
        targets.append(row.completion_ids[position])

    def per_token(values: Sequence[float | int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(lengths).to(device)

    def joined(name: str) -> Tensor | None:
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else torch.cat(parts).to(device)

    return MicroBatch(
        input_ids=input_ids.to(device),
        at_row=per_token(range(len(rows)), torch.int64),
        at_col=torch.cat(columns).to(device),
        targets=torch.cat(targets).to(device),
        rows=tuple(rows),
        sequence_ids=per_token([row.index for row in rows], torch.int64),
        group_ids=per_token([row.group for row in rows], torch.int64),
        positions=torch.cat(positions).to(device),
        lengths=per_token(lengths.tolist(), torch.int64),
        advantages=per_token([row.advantage for row in rows], torch.float64),
        weights=per_token([row.weight for row in rows], torch.float64),
        sampler_logps=torch.cat([row.sampler_logps for row in rows]).to(device),
        old_logps=joined("old_logps"),
        ref_logps=joined("ref_logps"),
    )


def loss_batch(micro: MicroBatch, scores: TokenScores) -> LossBatch:
    """The loss's view of a micro-batch whose tokens a forward gave `scores`."""
    return LossBatch(
        logps=scores.logps,
        entropies=scores.entropies,
        old_logps=micro.old_logps,
        ref_logps=micro.ref_logps,
        sampler_logps=micro.sampler_logps,
        advantages=micro.advantages,
        weights=micro.weights,
        sequence_ids=micro.sequence_ids,
        group_ids=micro.group_ids,
        positions=micro.positions,
        lengths=micro.lengths,
    )


def split_rows(micro: MicroBatch, values: Tensor) -> dict[int, Tensor]:
    """`values` [N] of a micro-batch → row index → [T_i], on the CPU."""
    parts = values.detach().cpu().split([row.length for row in micro.rows])
    return {row.index: part for row, part in zip(micro.rows, parts, strict=True)}
