"""Turns rows of a dataset into prompts, and draws them in an endless order that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ..common.console import counting_if_slow
from ..common.copies import own_copy
from ..types import Prompt
from .form import PLAIN, PromptForm
from .rows import DatasetRow
from .tokenizing import require_template, tokenize_all

LongPrompts = Literal["error", "truncate_left", "drop"]


def _fit(prompts: list[Prompt], limit: int, policy: LongPrompts, reason: str | None) -> list[Prompt]:
    """Cuts or leaves out prompts over `limit` tokens, as `policy` says. Raises ValueError for the first with "error"."""
    if policy == "truncate_left":
        return [replace(prompt, ids=prompt.ids[-limit:]) for prompt in prompts]
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= limit]
    if policy != "drop" and len(fitting) < len(prompts):
        first = next(prompt for prompt in prompts if len(prompt.ids) > limit)
        over = reason or f"--max_prompt_length {limit}"
        fix = "lower --max_completion_length" if reason else "raise --max_prompt_length"
        raise ValueError(
            f"{first.source}: the prompt has {len(first.ids)} tokens, over {over} "
            f"({len(prompts) - len(fitting)} of {len(prompts)} prompts are, the longest has "
            f"{max(len(prompt.ids) for prompt in prompts)}); {fix}, or instead of --long_prompts "
            "error use truncate_left (keep the last tokens) or drop (leave such prompts out)"
        )
    return fitting


# --------------------------------------------------------------------------- the order


@lru_cache(maxsize=16)
def _epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of one epoch's rows [n], a function of (n, seed, epoch) alone.

    The sort keys are raw bits: numpy promises that they never change, and doesn't promise it of `Generator.permutation`.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")
    order.setflags(write=False)
    return order


def row_at(position: int, count: int, seed: int, shuffle: bool) -> int:
    """Returns the row at a position of the endless order: every row once per epoch, each epoch shuffled anew.

    Args:
        position: the position, from 0.
        count: the number of rows.
        seed: the seed of the order.
        shuffle: whether epochs are shuffled; else they are in the order of the data.
    """
    epoch, place = divmod(position, count)
    return int(_epoch_order(count, seed, epoch)[place]) if shuffle else place


def own_prompt(prompt: Prompt) -> Prompt:
    """Returns the prompt with copies of its content and columns, which may be edited."""
    return replace(prompt, content=own_copy(prompt.content), columns=own_copy(prompt.columns))


def check_ids(prompt: Prompt, rows: int) -> Prompt:
    """Returns the prompt; raises ValueError where it has a token that a model of so many rows lacks."""
    if max(prompt.ids, default=0) >= rows:
        raise ValueError(
            f"{prompt.source}: the prompt has the token {max(prompt.ids)}, and the model's embedding has {rows} rows: its "
            "tokenizer has tokens that were added without a resize; resize the model "
            "(model.resize_token_embeddings(len(tokenizer))) and save it, or take the tokenizer that belongs to it"
        )
    return prompt


class Prompts:
    """Tokenized prompts in an endless order: every row once per epoch, each epoch shuffled anew.

    The order is a function of (seed, position) alone, so resuming needs no state but the position.

    Example: `Prompts(rows, tokenizer, seed=1).take(step * 8, 8)` are the prompts of a step.

    Attributes: `columns`, the names of all columns (a prompt has None where its row lacks one); `skipped_rows`,
    what was wrong with the malformed rows; `skipped`, `dropped` and `truncated`, how many rows were malformed,
    too long and left out, too long and cut.
    """

    def __init__(
        self,
        rows: Sequence[DatasetRow],
        tokenizer: Any,
        *,
        max_prompt_length: int | None = None,
        limit_reason: str | None = None,
        long_prompts: LongPrompts = "error",
        seed: int = 42,
        skip_bad_rows: bool = False,
        skipped_rows: Sequence[str] = (),
        flag: str = "--dataset",
        shuffle: bool = True,
        form: PromptForm = PLAIN,
    ) -> None:
        """Tokenize all `rows` (of `read_rows`) with a Hugging Face tokenizer.

        Args:
            max_prompt_length: in tokens; None: no limit. `limit_reason` says where it comes from, if not from its flag.
            long_prompts: what to do with prompts over that; "truncate_left" keeps the last tokens.
            skip_bad_rows: rows that the chat template refuses or that have no tokens join `skipped_rows`, which
                are those that `read_rows` skipped.
            flag: the option that named the dataset, for messages.
            shuffle: draw the rows of each epoch in a new random order; else in the order given.
            form: how prompts are written.

        Raises ValueError naming file:line for such a row, for a chat whose tokenizer has no chat template, and
        for a prompt over `max_prompt_length` if `long_prompts` is "error"; naming `flag` if no prompt is left; naming
        --system_prompt, --chat_template_kwargs or --chat_template if there is one and no chat.
        """
        require_template(rows, tokenizer)
        prompts, bad = [], list(skipped_rows)
        with counting_if_slow(f"tokenizing {flag}", len(rows)) as progress:
            for number, found in enumerate(tokenize_all(rows, tokenizer, form), 1):
                if not isinstance(found, ValueError):
                    prompts.append(found)
                elif skip_bad_rows:
                    bad.append(str(found))
                else:
                    raise found
                progress(number)
        if form.of_chats and all(isinstance(prompt.content, str) for prompt in prompts):
            raise ValueError(
                f"{form.of_chats}: no prompt of {flag} is a chat, so nothing would have it; put it into the prompts' text, or "
                "state them as `messages`"
            )
        limit = max_prompt_length or max((len(prompt.ids) for prompt in prompts), default=0)
        fitting = _fit(prompts, limit, long_prompts, limit_reason)
        if not fitting:
            over = f"{len(prompts)} over --max_prompt_length {limit}, which --long_prompts drop leaves out"
            raise ValueError(
                "; ".join([f"{flag}: no prompt is left: {len(bad)} malformed, {over}", *bad[:1]])
            )
        self.columns = {name for row in rows for name in row.columns}
        self.seed, self.shuffle = seed, shuffle
        self.skipped_rows = tuple(bad)
        self.skipped = len(bad)
        self.dropped = len(prompts) - len(fitting)
        self.truncated = sum(len(p.ids) > limit for p in prompts) if long_prompts == "truncate_left" else 0
        blank = dict.fromkeys(sorted(self.columns))
        self._prompts = [replace(prompt, columns={**blank, **prompt.columns}) for prompt in fitting]

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.ids) for prompt in self._prompts)

    def at(self, position: int) -> Prompt:
        """The prompt at `position` ≥ 0 of the endless order; its epoch is `position // len(self)`."""
        return self.by_row(row_at(position, len(self), self.seed, self.shuffle), position)

    def by_row(self, row: int, position: int) -> Prompt:
        """The prompt of a row, for a position. Rows that were left out are not counted."""
        # What users edit in a step (a filter, a sampler, a callback) does not come back in the next epoch.
        return replace(own_prompt(self._prompts[row]), position=position)

    def checked(self) -> list[Prompt]:
        """The prompts that were read at the start: all of them."""
        return self.in_order()

    def check_ids(self, rows: int) -> None:
        """Raises ValueError for the first prompt with a token that a model of so many rows lacks."""
        for prompt in self._prompts:
            check_ids(prompt, rows)

    def take(self, position: int, count: int) -> list[Prompt]:
        """The `count` prompts from `position` on, over the ends of epochs."""
        return [self.at(position + offset) for offset in range(count)]

    def reaches(self, position: int) -> bool:
        """Tells whether there is a prompt at `position`: the order never ends."""
        return True

    def data_state(self, position: int) -> None:
        """Nothing: the order is a function of seed and position."""

    def restore(self, saved: None) -> None:
        """Nothing to restore."""

    def in_order(self, limit: int | None = None) -> list[Prompt]:
        """The first `limit` prompts (None or 0: all) in the file's order, for evaluation; positions count from 0."""
        return [replace(p, position=place) for place, p in enumerate(self._prompts[: limit or None])]
