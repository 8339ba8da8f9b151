"""LossBatch: what the loss sees. Only trainable tokens, in flat lists; no padding, so no mask to forget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_FLOATS = ("logps", "old_logps", "ref_logps", "sampler_logps", "entropies", "advantages", "weights")
_INTEGERS = ("sequence_ids", "group_ids", "positions", "lengths")


@dataclass(frozen=True, eq=False)
class LossBatch:
    """N trainable tokens of one update, or of any slice of it; every field is [N].

    A slice is a subset of the update's tokens: a micro-batch, a rank, a chunk of the head, all the same thing.
    Raises ValueError naming the field where a shape or a type is off.

    Example: `LossBatch(logps=lp, advantages=a, weights=w[ids], sequence_ids=ids)` is an on-policy batch.
    """

    logps: Tensor  # log-probabilities under the policy being trained, with gradient
    advantages: Tensor
    weights: Tensor  # w_i of the token's sequence, from `sequence_weights`
    sequence_ids: Tensor  # number of the token's sequence in the update, the same on every slice and rank
    old_logps: Tensor | None = None  # the trainer's own at the start of the step; None: on-policy, ratio 1
    ref_logps: Tensor | None = None  # the reference model's
    sampler_logps: Tensor | None = None  # the sampling engine's
    entropies: Tensor | None = None  # of the policy being trained
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
        """The same from padded tensors: `mask` and log-probs [B, T]; advantages and weights [B] or [B, T].

        Masked positions are left out before anything is computed, so they may hold NaN or ±inf. `sequence_ids`
        [B] (default 0..B−1) must be given where these rows are only a part of the update; `lengths` [B]
        (default: the mask's row sums) where they are only a part of their sequences.
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
        """The slice of the tokens that `index` names: a bool mask [N], positions, or a range."""
        return LossBatch(**{name: value[index] for name, value in self._given()})

    def upcast(self) -> LossBatch:
        """All floats in one type, that of `logps` or float32 where it is narrower; integers in int64."""
        dtype = torch.promote_types(self.logps.dtype, torch.float32)
        # int64, because the statistics' key packs two of the integers in 64 bits.
        wide = {name: value.to(dtype if name in _FLOATS else torch.int64) for name, value in self._given()}
        return dataclasses.replace(self, **wide)
