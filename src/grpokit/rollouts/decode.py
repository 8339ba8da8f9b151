"""A decode loop: one forward over each prompt for all its completions, then one forward per new token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..policy.architecture import backbone, head
from .attention import LIGHT
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
                self.rebuild()
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = new
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def rebuild(self, rows: Tensor | None = None) -> None:
        """Makes room for more tokens, and keeps only the completions `rows` [b] (which may repeat; None: all)."""
        # A quarter more, because few completions reach the full length.
        capacity = self.length + max(16, self.length // 4)
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


def decode(
    model: Any,
    prompts: tuple[Tensor, Tensor | None],
    rows: Tensor,
    picker: TokenPicker,
    max_length: int,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Samples B completions into `picker`. Finished ones leave the batch once there are enough of them.

    Args:
        model: the Hugging Face model.
        prompts: input_ids [P, L], padded on the left, and their mask [P, L] (None: no padding).
        rows: [B] the prompt that each completion continues.
        picker: picks and records the tokens.
        max_length: the most tokens of a completion.
        stop: checked now and then.

    Raises:
        SamplingStopped: `stop()` returned True.
    """
    look_every = 1 if rows.device.type == "cpu" else SYNC_EVERY
    running = Completing(model)
    logits = running.start(*prompts, rows, max_length)
    for t in range(1, max_length + 1):
        tokens = picker.pick(logits)  # [b]
        if t == max_length:
            return
        if t % STOP_EVERY == 0 and stop():
            raise SamplingStopped(f"stopped after {t} tokens of a batch")
        if t % look_every == 0:
            unfinished = ~picker.ended
            left = int(unfinished.sum())
            if left == 0:
                return
            if len(tokens) - left >= LEAVE_AT * len(tokens):
                kept = unfinished.nonzero()[:, 0]
                picker.keep(kept)
                running.keep(kept)
                tokens = tokens[kept]
        logits = running.step(tokens)
