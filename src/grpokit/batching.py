"""Groups → updates with fixed weights, then micro-batches by token budget. Only the first decides any number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .losses import Counts, Loss, LossBatch, sequence_weights
from .types import MicroBatch, RolloutGroup, Row, StepBatch, TokenScores


def plan_step(
    groups: Sequence[RolloutGroup], loss: Loss, updates_per_step: int = 1, ranks: int = 1
) -> list[StepBatch]:
    """A step's groups in `updates_per_step` updates of whole groups, each with its weights fixed for good."""
    size = -(-len(groups) // updates_per_step)
    return [plan_update(groups[start : start + size], loss, ranks) for start in range(0, len(groups), size)]


def plan_update(groups: Sequence[RolloutGroup], loss: Loss, ranks: int = 1) -> StepBatch:
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
    return weigh(rows, loss, ranks)


def weigh(rows: Sequence[Row], loss: Loss, ranks: int = 1) -> StepBatch:
    """An update's rows with w_i of every sequence, from the counts of all of them.

    The rows are dealt to `ranks` first, since one reduction (bnpo's) divides by the tokens of the sequence's own rank.
    A sequence without trainable tokens has no weight and isn't counted, so it's left out here.
    """
    shares = deal(rows, ranks)
    lengths = [torch.tensor([row.length for row in share], dtype=torch.int64) for share in shares]
    groups = [torch.tensor([row.group for row in share], dtype=torch.int64) for share in shares]
    counts = Counts.across_ranks([Counts.of(*of_rank) for of_rank in zip(lengths, groups, strict=True)])
    weighed = [
        dataclasses.replace(row, weight=float(w))
        for share, own, n, g in zip(shares, counts, lengths, groups, strict=True)
        for row, w in zip(share, sequence_weights(loss, n, own, g), strict=True)
        if row.length
    ]
    return StepBatch(tuple(sorted(weighed, key=lambda row: row.index)), counts[0].tokens)


def _advantages(group: RolloutGroup) -> Tensor:
    if group.advantages is None:
        raise ValueError(f"{group.prompt.source}: the group has no advantages yet; with_advantages first")
    return group.advantages


def work(row: Row) -> float:
    """What a row's forward and backward cost, in tokens: attention's square equals the rest at some 8,000 of them."""
    return row.num_tokens * (1 + row.num_tokens / 8192)


def deal(rows: Iterable[Row], ranks: int) -> list[list[Row]]:
    """Rows → a share for each rank, of about equal work: the dearest first, each to the rank with the least so far."""
    shares: list[list[Row]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for row in sorted(rows, key=lambda row: (-work(row), row.index)):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += work(row)
    return shares


def imbalance(rows: Iterable[Row], ranks: int) -> float:
    """The busiest rank's work over the mean: 1 where all have the same, so that none waits."""
    loads = [sum(work(row) for row in share) for share in deal(rows, ranks)]
    return max(loads) * ranks / sum(loads) if sum(loads) else 1.0


def micro_batches(
    rows: Iterable[Row],
    budget: int,
    device: torch.device | str = "cpu",
    *,
    packed: bool = False,
    rank: int = 0,
    ranks: int = 1,
) -> list[MicroBatch]:
    """A rank's share of the rows in forwards of at most `budget` tokens, padding included; a longer row goes alone.

    How the rows are cut changes no result: their weights are fixed. All ranks get the same number of micro-batches,
    because each forward is a meeting of all; one that has too few cuts the larger ones, or adds empty ones.
    """
    cuts = [_cut(share, budget, packed) for share in deal(rows, ranks)]
    mine, wanted = cuts[rank], max(len(parts) for parts in cuts)
    while len(mine) < wanted:
        largest = max(range(len(mine)), key=lambda i: len(mine[i]), default=None)
        part = [] if largest is None or len(mine[largest]) < 2 else mine.pop(largest)
        mine += [part[: len(part) // 2], part[len(part) // 2 :]] if part else [[]]
    return [_collate(part, device, packed) for part in mine]


def _cut(rows: Iterable[Row], budget: int, packed: bool) -> list[list[Row]]:
    parts: list[list[Row]] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: row.num_tokens):  # each new row is the longest of its micro-batch
        tokens = tokens + row.num_tokens if packed else (len(parts[-1]) + 1 if parts else 1) * row.num_tokens
        if not parts or tokens > budget:
            parts.append([])
            tokens = row.num_tokens
        parts[-1].append(row)
    return parts


def _collate(rows: Sequence[Row], device: torch.device | str, packed: bool) -> MicroBatch:
    """Right-padded or packed inputs, and the trainable tokens of all rows in flat lists [N]."""
    # A forward of no rows has one token, which nothing looks at.
    sizes = [row.num_tokens for row in rows] or [1]
    starts = [sum(sizes[:b]) if packed else 0 for b in range(len(rows))]
    input_ids = torch.zeros(
        1 if packed else len(sizes), sum(sizes) if packed else max(sizes), dtype=torch.int64
    )
    position_ids = torch.cat([torch.arange(n) for n in sizes])[None].to(device) if packed else None
    lengths = torch.tensor([row.length for row in rows], dtype=torch.int64)
    # Of no rows, too, there are tensors. Narrower types than what joins them: they change none.
    none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    columns, positions, targets = [none], [none], [none]
    for b, row in enumerate(rows):
        prompt = torch.tensor(row.prompt_ids, dtype=torch.int64)
        place = slice(starts[b], starts[b] + row.num_tokens)
        input_ids[0 if packed else b, place] = torch.cat([prompt, row.completion_ids])
        position = torch.nonzero(row.trainable).flatten()
        positions.append(position)
        columns.append(starts[b] + len(prompt) + position - 1)  # the hidden state before a token predicts it
        targets.append(row.completion_ids[position])

    def per_token(values: Sequence[float | int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(lengths).to(device)

    def joined(name: str) -> Tensor | None:
        parts = [getattr(row, name) for row in rows]
        if parts and all(part is None for part in parts):
            return None
        if any(part is None for part in parts):
            raise ValueError(f"{name}: some rows of the micro-batch have them, and some have none")
        return torch.cat([nothing, *parts]).to(device)

    return MicroBatch(
        input_ids=input_ids.to(device),
        position_ids=position_ids,
        at_row=per_token([0 if packed else b for b in range(len(rows))], torch.int64),
        at_col=torch.cat(columns).to(device),
        targets=torch.cat(targets).to(device),
        rows=tuple(rows),
        sequence_ids=per_token([row.index for row in rows], torch.int64),
        group_ids=per_token([row.group for row in rows], torch.int64),
        positions=torch.cat(positions).to(device),
        lengths=per_token(lengths.tolist(), torch.int64),
        advantages=per_token([row.advantage for row in rows], torch.float64),
        weights=per_token([row.weight for row in rows], torch.float64),
        sampler_logps=torch.cat([nothing, *(row.sampler_logps for row in rows)]).to(device),
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
