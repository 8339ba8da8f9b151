"""`LossBatch`, the input of a loss: trainable tokens only, as flat lists. It has no padding, so no mask can be forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_FLOATS = (
    *("logps", "old_logps", "ref_logps", "sampler_logps", "teacher_logps", "entropies"),
    *("advantages", "weights", "teacher_weights"),
)
_INTEGERS = ("sequence_ids", "group_ids", "positions", "lengths")


@dataclass(frozen=True, eq=False)
class LossBatch:
    """N trainable tokens of one update, or of any slice of it. Every field has the shape [N].

    A slice is any subset of the update's tokens: a micro-batch, a rank's tokens or a chunk of the head.

    Raises:
        ValueError: a field has the wrong shape or dtype. The message names the field.

    Example:
        >>> ids = torch.tensor([0, 0, 1])  # two tokens of sequence 0, one of sequence 1
        >>> one = torch.ones(3)
        >>> len(LossBatch(logps=-one, advantages=one, weights=one / 3, sequence_ids=ids))
        3
    """

    logps: Tensor  # log-probs under the policy being trained, with gradient
    advantages: Tensor
    weights: Tensor  # w_i of the token's sequence, from `sequence_weights`
    sequence_ids: Tensor  # number of the token's sequence in the update, the same on every slice and rank
    old_logps: Tensor | None = None  # the trainer's, at the start of the step; None: on-policy, ratio 1
    ref_logps: Tensor | None = None  # log-probs under the reference model
    sampler_logps: Tensor | None = None  # log-probs recorded by the sampling engine
    teacher_logps: Tensor | None = None  # log-probs under the teacher (`teacher_coef`)
    teacher_weights: Tensor | None = (
        None  # the weight of the teacher's term: 1 / the update's trainable tokens
    )
    entropies: Tensor | None = None  # entropies of the policy being trained, in nats
    group_ids: Tensor | None = None  # number of the sequence's group in the update
    positions: Tensor | None = None  # place of the token in its completion
    lengths: Tensor | None = None  # trainable tokens of the whole sequence, T_i

    def __post_init__(self) -> None:
        if self.logps.ndim != 1:
            raise ValueError(
                f"LossBatch.logps has shape {list(self.logps.shape)}; expected a flat list [N] of trainable tokens "
                "(LossBatch.from_padded makes one from [B, T] tensors and a mask)"
            )
        for name, value in self._given():
            if value.shape != self.logps.shape:
                hint = (
                    "; index per-sequence values by sequence_ids" if name in ("advantages", "weights") else ""
                )
                raise ValueError(
                    f"LossBatch.{name} has shape {list(value.shape)}; expected one per token of logps, "
                    f"{list(self.logps.shape)}{hint}"
                )
            if value.is_floating_point() != (name in _FLOATS) or value.dtype == torch.bool:
                expected = "a floating-point tensor" if name in _FLOATS else "an integer tensor"
                raise ValueError(f"LossBatch.{name} is {value.dtype}; expected {expected}")

    def _given(self) -> Iterator[tuple[str, Tensor]]:
        for name in _FLOATS + _INTEGERS:
            value = getattr(self, name)
            if value is not None:
                yield name, value

    @classmethod
    def from_padded(
        cls,
        mask: Tensor,
        *,
        logps: Tensor,
        advantages: Tensor,
        weights: Tensor,
        sequence_ids: Tensor | None = None,
        group_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        **optional: Tensor | None,
    ) -> LossBatch:
        """Makes a batch from padded tensors.

        Masked positions are removed before anything is computed, so they may hold NaN or ±inf.

        Args:
            mask: [B, T], true for trainable tokens.
            logps: [B, T], with gradient.
            advantages: [B] or [B, T].
            weights: [B] or [B, T], from `sequence_weights`.
            sequence_ids: [B], default 0..B−1. Required where these sequences are only a part of the update.
            group_ids: [B], the group of each sequence.
            lengths: [B], T_i of the whole sequences; default: the mask's sums. Required where sequences were cut.
            positions: [B, T], default 0..T−1.
            **optional: [B, T], any other field, such as `old_logps`.

        Returns:
            The batch of the N tokens where `mask` is true.

        Raises:
            ValueError: a tensor has neither the shape [B, T] nor [B].
        """
        keep = mask.bool()
        rows, columns = (
            torch.arange(mask.shape[0], device=mask.device),
            torch.arange(mask.shape[1], device=mask.device),
        )

        def flat(name: str, value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            if value.shape == mask.shape:
                return value[keep]
            if value.shape == mask.shape[:1]:
                return value[:, None].expand(mask.shape)[keep]
            raise ValueError(
                f"from_padded: {name} has shape {list(value.shape)}; expected {list(mask.shape)}"
                f" or {list(mask.shape[:1])}"
            )

        fields = {
            "logps": logps,
            "advantages": advantages,
            "weights": weights,
            "sequence_ids": rows if sequence_ids is None else sequence_ids,
            "group_ids": group_ids,
            "lengths": keep.sum(-1) if lengths is None else lengths,
            "positions": columns.expand(mask.shape) if positions is None else positions,
            **optional,
        }
        return cls(**{name: flat(name, value) for name, value in fields.items()})  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self.logps)

    def select(self, index: Tensor | slice) -> LossBatch:
        """Returns the slice of the tokens that `index` names: a bool mask [N], positions, or a range."""
        return LossBatch(**{name: value[index] for name, value in self._given()})

    def upcast(self) -> LossBatch:
        """Returns the batch with floats in the dtype of `logps`, at least float32, and integers in int64."""
        dtype = torch.promote_types(self.logps.dtype, torch.float32)
        # The statistics pack two of the integers in one 64-bit key.
        wide = {name: value.to(dtype if name in _FLOATS else torch.int64) for name, value in self._given()}
        return dataclasses.replace(self, **wide)

    def unscored(self) -> UnscoredTokens:
        """Returns the same tokens without log-probs and entropies."""
        names = [field.name for field in dataclasses.fields(UnscoredTokens)]
        return UnscoredTokens(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, eq=False)
class UnscoredTokens:
    """N trainable tokens before a forward has given their log-probs: a `LossBatch` without `logps` and `entropies`.

    Example:
        >>> one, ids = torch.ones(2), torch.tensor([0, 1])
        >>> len(UnscoredTokens(advantages=one, weights=one / 2, sequence_ids=ids).score(-one))
        2
    """

    advantages: Tensor
    weights: Tensor
    sequence_ids: Tensor
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    sampler_logps: Tensor | None = None
    teacher_logps: Tensor | None = None
    teacher_weights: Tensor | None = None
    group_ids: Tensor | None = None
    positions: Tensor | None = None
    lengths: Tensor | None = None

    def score(
        self, logps: Tensor, entropies: Tensor | None = None, index: Tensor | slice = slice(None)
    ) -> LossBatch:
        """Returns the loss's input for the tokens that `index` names, whose log-probs and entropies [n] are given."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        selected = {name: None if value is None else value[index] for name, value in fields.items()}
        return LossBatch(logps=logps, entropies=entropies, **selected)  # pyright: ignore[reportArgumentType]
