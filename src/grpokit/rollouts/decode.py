"""A decode loop: one forward over each prompt for all its completions, then one forward per new token.

A later turn of an episode begins with one forward over its new tokens alone, using the keys and values of earlier turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..policy.architecture import backbone, head
from .attention import LIGHT
from .kept import Block
from .picking import TokenPicker
from .sampler import SamplingStopped

STOP_EVERY = 32  # tokens between two checks of `stop`
SYNC_EVERY = 8  # tokens between two checks for finished completions on a GPU, where a check waits
LEAVE_AT = 0.25  # share of finished completions at which copying the others' cache pays off


class RoomyLayer(DynamicLayer):
    """A layer's keys and values [B, heads, L, D], at the front of longer buffers.

    The library's own layer copies all of them for every new token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends keys and values [B, heads, l, D]. Returns all keys and values."""
        start, end = self.length, self.length + key_states.shape[-2]
        if not self.buffers:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.buffers = [key_states, value_states]
        else:
            if end > self.buffers[0].shape[-2]:
                self.rebuild(at_least=end)
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = new
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def load(self, buffers: Sequence[Tensor], length: int) -> None:
        """Takes keys and values [B, heads, L, D] of which the first `length` are filled."""
        self.buffers, self.length = list(buffers), length
        self.dtype, self.device, self.is_initialized = buffers[0].dtype, buffers[0].device, True
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def rebuild(self, rows: Tensor | None = None, at_least: int = 0) -> None:
        """Makes room for more tokens, and keeps only the completions `rows` [b] (which may repeat; None: all)."""
        # A quarter more, because few completions reach the full length.
        capacity = max(self.length + max(16, self.length // 4), at_least)
        for i, buffer in enumerate(self.buffers):
            filled = buffer[:, :, : self.length]
            size = len(filled if rows is None else rows), filled.shape[1], capacity, filled.shape[3]
            new = buffer.new_empty(size)
            if rows is None:
                new[:, :, : self.length] = filled
            else:
                torch.index_select(filled, 0, rows, out=new[:, :, : self.length])
            self.buffers[i] = new

    def get_seq_length(self) -> int:
        """Returns the number of tokens it holds."""
        return self.length


class Completing:
    """The state of b unfinished completions: their cache, their positions, and which columns are padding."""

    def __init__(self, model: Any) -> None:
        self.forward, self.head = backbone(model), head(model)
        # The mask is made once instead of by the model for every token. Other attentions need other kinds of masks.
        self.boolean_masks = model.config._attn_implementation in ("sdpa", LIGHT)
        self.cache = DynamicCache(config=model.config)
        self.layers = [RoomyLayer() for _ in self.cache.layers]
        self.cache.layers[:] = self.layers

    def start(self, input_ids: Tensor, mask: Tensor | None, rows: Tensor, max_length: int) -> Tensor:
        """Runs one forward over the prompts.

        Args:
            input_ids: [P, L] prompts, padded on the left.
            mask: [P, L] 0 at padding; None: no padding.
            rows: [B] the prompt that each completion continues.
            max_length: the most tokens of a completion.

        Returns:
            Logits [B, V] of the first tokens.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        if mask is not None:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._logits(input_ids, mask, positions)
        self.positions, self.columns = positions[:, -1:], None
        if mask is not None:
            columns = torch.nn.functional.pad(mask, (0, max_length), value=1)  # [P, L + T]
            self.columns = columns.bool()[:, None, None] if self.boolean_masks else columns
        self.keep(rows)
        return logits[rows]

    def resume(self, kept: Block, input_ids: Tensor, mask: Tensor, max_length: int) -> Tensor:
        """Runs one forward over new tokens, behind kept ones.

        Args:
            kept: the keys and values of b rows.
            input_ids: [b, N] new tokens, padded on the left.
            mask: [b, N] 0 at padding.
            max_length: the most tokens of a completion.

        Returns:
            Logits [b, V] of the first tokens.
        """
        for layer, buffers in zip(self.layers, kept.layers, strict=True):
            layer.load(buffers, kept.columns.shape[1])
        positions = kept.columns.sum(-1, keepdim=True) + (mask.cumsum(-1) - 1).clamp(min=0)
        whole = torch.cat([kept.columns.to(mask.dtype), mask], dim=1)
        logits = self._logits(input_ids, whole, positions)
        self.positions = positions[:, -1:]
        columns = torch.nn.functional.pad(whole, (0, max_length), value=1)
        self.columns = columns.bool()[:, None, None] if self.boolean_masks else columns
        return logits

    def block(self, rows: Tensor, counts: Tensor) -> Block:
        """Returns the keys and values of the first `counts` [n] tokens of the completions `rows` [n]."""
        length = self.cache.get_seq_length()
        columns = torch.ones(len(rows), length, dtype=torch.bool, device=rows.device)
        if self.columns is not None:
            columns = self.columns[rows].reshape(len(rows), -1)[:, :length].bool()
        columns &= columns.cumsum(-1) <= counts[:, None]
        return Block(
            tuple(tuple(b[rows, :, :length] for b in layer.buffers) for layer in self.layers),  # pyright: ignore
            columns,
        )

    def num_bytes(self, rows: int) -> int:
        """Returns the memory that a block of so many rows takes."""
        found = (buffer for layer in self.layers for buffer in layer.buffers)
        return sum(rows * b[0, :, : self.layers[0].length].numel() * b.element_size() for b in found)

    def step(self, tokens: Tensor) -> Tensor:
        """Appends tokens [b]. Returns the logits [b, V] of the next ones."""
        self.positions = self.positions + 1
        mask = None if self.columns is None else self.columns[..., : self.cache.get_seq_length() + 1]
        return self._logits(tokens[:, None], mask, self.positions)

    def keep(self, rows: Tensor) -> None:
        """Keeps only the completions `rows` [b'], which may repeat."""
        self.positions = self.positions[rows]
        self.columns = None if self.columns is None else self.columns[rows]
        for layer in self.layers:
            layer.rebuild(rows)

    def _logits(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        output = self.forward(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return self.head.logits(output.last_hidden_state[:, -1])


Leave = Callable[[Tensor], None]
"""Called before completions leave the batch, with their row numbers [n] in the current batch."""


def decode(
    running: Completing,
    logits: Tensor,
    picker: TokenPicker,
    max_length: int,
    stop: Callable[[], bool] = lambda: False,
    leave: Leave = lambda rows: None,
) -> None:
    """Samples B completions into `picker`. Finished ones leave the batch once there are enough of them.

    Args:
        running: the completions, which have read their prompts.
        logits: [B, V] of their first tokens.
        picker: picks and records the tokens.
        max_length: the most tokens of a completion.
        stop: checked now and then.
        leave: called where completions leave.

    Raises:
        SamplingStopped: `stop()` returned True.
    """
    look_every = 1 if logits.device.type == "cpu" else SYNC_EVERY
    for t in range(1, max_length + 1):
        tokens = picker.pick(logits)  # [b]
        if t == max_length:
            leave(torch.arange(len(tokens), device=tokens.device))
            return
        if t % STOP_EVERY == 0 and stop():
            raise SamplingStopped(f"stopped after {t} tokens of a batch")
        if t % look_every == 0:
            unfinished = ~picker.ended
            left = int(unfinished.sum())
            if left == 0:
                leave(torch.arange(len(tokens), device=tokens.device))
                return
            if len(tokens) - left >= LEAVE_AT * len(tokens):
                leave(picker.ended.nonzero()[:, 0])
                kept = unfinished.nonzero()[:, 0]
                picker.keep(kept)
                running.keep(kept)
                tokens = tokens[kept]
        logits = running.step(tokens)
