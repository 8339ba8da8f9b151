"""Samples → micro-batches: the tensors of a forward in each layout, and the trainable tokens as flat lists."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..losses import LossBatch, UnscoredTokens
from ..types import Layout, MicroBatch, Prefix, Sample, TokenScores


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """A forward's inputs, and where each sample's hidden states are in its flat output."""

    input_ids: Tensor
    position_ids: Tensor | None
    prefix: Prefix | None
    firsts: list[int]  # flat index of the hidden state that predicts the completion's first token
    seconds: list[int]  # that of its second token; the others follow it
    copies: Tensor  # [M] how many samples each input token counts for; 0 for padding


def _padded(samples: Sequence[Sample], whole: bool) -> _Inputs:
    input_ids = _pad([_sequence(sample) for sample in samples])
    ends = [b * input_ids.shape[1] + len(sample.prompt_ids) for b, sample in enumerate(samples)]
    copies = _within(input_ids, [sample.num_tokens for sample in samples])
    return _Inputs(input_ids, None, None, [end - 1 for end in ends], ends, copies)


def _packed(samples: Sequence[Sample], whole: bool) -> _Inputs:
    sequences = [_sequence(sample) for sample in samples] or [_NOTHING]
    starts = [0, *itertools.accumulate(map(len, sequences))]
    ends = [start + len(sample.prompt_ids) for start, sample in zip(starts, samples, strict=False)]
    position_ids = torch.cat([torch.arange(len(ids)) for ids in sequences])[None]
    input_ids = torch.cat(sequences)[None]
    copies = torch.full((input_ids.numel(),), int(bool(samples)))
    return _Inputs(input_ids, position_ids, None, [end - 1 for end in ends], ends, copies)


def _shared(samples: Sequence[Sample], whole: bool) -> _Inputs:
    """Pads prompts on the right: causal attention never reads there. `mask` hides that padding from the completions."""
    place: dict[tuple[int, tuple[int, ...]], int] = {}  # group and prompt → the prompt's index
    prompts: list[tuple[int, ...]] = []
    for sample in samples:
        if sample.origin not in place:
            place[sample.origin] = len(prompts)
            prompts.append(sample.prompt_ids)
    of = torch.tensor([place[sample.origin] for sample in samples] or [0])
    lengths = torch.tensor([len(ids) for ids in prompts] or [1])
    prompt_ids = _pad([torch.tensor(ids) for ids in prompts])
    completions = [sample.completion_ids if whole else sample.completion_ids[:-1] for sample in samples]
    input_ids = _pad(completions)
    (_, width), (_, length) = prompt_ids.shape, input_ids.shape
    # Padding repeats the sample's last position, because a model may have no positions beyond its context.
    last = torch.tensor([len(sample.completion_ids) - 1 for sample in samples] or [0])
    position_ids = lengths[of, None] + torch.minimum(torch.arange(length), last[:, None])
    mask = None
    if int(lengths.min()) < width:
        mask = torch.ones(len(of), width + length, dtype=torch.int64)
        mask[:, :width] = torch.arange(width) < lengths[of, None]
    firsts = [place[sample.origin] * width + len(sample.prompt_ids) - 1 for sample in samples]
    seconds = [prompt_ids.numel() + b * length for b in range(len(samples))]
    members = torch.bincount(of[: len(samples)], minlength=len(lengths))
    of_prompts = _within(prompt_ids, lengths.tolist()) * members.repeat_interleave(width)
    copies = torch.cat([of_prompts, _within(input_ids, [len(ids) for ids in completions])])
    return _Inputs(input_ids, position_ids, Prefix(prompt_ids, of, mask), firsts, seconds, copies)


_LAYOUTS: dict[Layout, Callable[[Sequence[Sample], bool], _Inputs]] = {
    "padded": _padded,
    "packed": _packed,
    "shared": _shared,
}
_NOTHING = torch.zeros(1, dtype=torch.int64)  # the one token of a forward without samples; unused


def _sequence(sample: Sample) -> Tensor:
    return torch.cat([torch.tensor(sample.prompt_ids, dtype=torch.int64), sample.completion_ids])


def _pad(sequences: Sequence[Tensor]) -> Tensor:
    """Pads token lists on the right: [B, L], with L ≥ 1."""
    return torch.nn.utils.rnn.pad_sequence([_NOTHING, *sequences], batch_first=True)[bool(sequences) :]


def _within(ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Tells which tokens of padded rows [B, L] aren't padding: [B·L] of 1 and 0."""
    ends = torch.tensor([*lengths, *[0] * (len(ids) - len(lengths))])
    return (torch.arange(ids.shape[1]) < ends[:, None]).long().flatten()


def collate(
    samples: Sequence[Sample],
    layout: Layout,
    device: torch.device | str,
    whole: bool = False,
    compared: bool = True,
) -> MicroBatch:
    """Builds one forward.

    Args:
        samples: the samples of the forward; none is allowed.
        layout: `padded`, `packed` or `shared`.
        device: where the tensors go.
        whole: whether `shared` has each completion's last token too, which predicts nothing, as the other layouts do.
        compared: whether the sampler's log-probs may be compared with the policy's.

    Returns:
        The inputs, and the trainable tokens of all samples as flat lists [N].
    """
    inputs = _LAYOUTS[layout](samples, whole)
    lengths = torch.tensor([sample.length for sample in samples], dtype=torch.int64)
    # An empty micro-batch still needs tensors. These start every `cat`, and their dtypes never widen the result.
    none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    at, positions, targets = [none], [none], [none]
    for sample, first, second in zip(samples, inputs.firsts, inputs.seconds, strict=True):
        position = torch.nonzero(sample.trainable).flatten()
        positions.append(position)
        at.append(torch.where(position == 0, first, second + position - 1))
        targets.append(sample.completion_ids[position])

    def per_token(values: Sequence[float | int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(lengths).to(device)

    def joined(name: str) -> Tensor | None:
        parts = [getattr(sample, name) for sample in samples]
        if parts and all(part is None for part in parts):
            return None
        if any(part is None for part in parts):
            raise ValueError(f"{name}: some samples of the micro-batch have them, and some have none")
        return torch.cat([nothing, *parts]).to(device)

    sampler = [sample.sampler_logps for sample in samples]
    return MicroBatch(
        input_ids=inputs.input_ids.to(device),
        position_ids=None if inputs.position_ids is None else inputs.position_ids.to(device),
        prefix=None if inputs.prefix is None else inputs.prefix.to(device),
        copies=inputs.copies.to(device),
        at=torch.cat(at).to(device),
        targets=torch.cat(targets).to(device),
        samples=tuple(samples),
        sequence_ids=per_token([sample.index for sample in samples], torch.int64),
        group_ids=per_token([sample.group for sample in samples], torch.int64),
        positions=torch.cat(positions).to(device),
        lengths=per_token(lengths.tolist(), torch.int64),
        advantages=torch.cat([nothing.double(), *(sample.advantages for sample in samples)]).to(device),
        weights=per_token([sample.weight for sample in samples], torch.float64),
        sampler_logps=torch.cat([nothing, *sampler]).to(device) if compared else None,
        old_logps=joined("old_logps"),
        ref_logps=joined("ref_logps"),
        teacher_logps=joined("teacher_logps"),
        teacher_weights=per_token([sample.teacher_weight for sample in samples], torch.float64),
    )


def unscored_tokens(micro: MicroBatch) -> UnscoredTokens:
    """Returns the loss's input for a micro-batch, still without log-probs."""
    return UnscoredTokens(
        advantages=micro.advantages,
        weights=micro.weights,
        sequence_ids=micro.sequence_ids,
        old_logps=micro.old_logps,
        ref_logps=micro.ref_logps,
        sampler_logps=micro.sampler_logps,
        teacher_logps=micro.teacher_logps,
        teacher_weights=micro.teacher_weights,
        group_ids=micro.group_ids,
        positions=micro.positions,
        lengths=micro.lengths,
    )


def loss_batch(micro: MicroBatch, scores: TokenScores) -> LossBatch:
    """Builds the loss's input from a micro-batch and its scores."""
    return unscored_tokens(micro).score(scores.logps, scores.entropies)


def split_by_sample(micro: MicroBatch, values: Tensor) -> dict[int, Tensor]:
    """Splits `values` [N] of a micro-batch by sample: sample index → [T_i], on the CPU."""
    parts = values.detach().cpu().split([sample.length for sample in micro.samples])
    return {sample.index: part for sample, part in zip(micro.samples, parts, strict=True)}
