"""How a planned update is cut: the lengths of its samples, and its micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.options import PlanConfig

PROMPT = 256  # tokens of a prompt, if --prompt_tokens is not given


@dataclass(frozen=True)
class Batch:
    """The samples of an update on the rank that has the most, all of the mean length."""

    rows: int
    length: int  # tokens of a sample, prompt included
    micro_batches: int
    rows_of_each: int

    @property
    def tokens(self) -> int:
        """Tokens of one full micro-batch."""
        return self.rows_of_each * self.length

    def fill(self, budget: int) -> float:
        """The share of the micro-batches' budget that holds tokens."""
        return self.rows * self.length / (self.micro_batches * budget)


def prompt_tokens(config: PlanConfig) -> int:
    """Returns the mean length of a prompt."""
    return PROMPT if config.prompt_tokens is None else config.prompt_tokens


def completion_tokens(config: PlanConfig) -> int:
    """Returns the mean length of a completion."""
    given = config.completion_tokens
    return config.max_completion_length if given is None else given


def batch_of(config: PlanConfig, length: int) -> Batch:
    """Cuts an update of samples of `length` tokens on the rank that has the most, as `micro_batches` does."""
    update = config.prompts_per_step * config.num_generations // config.updates_per_step
    rows = -(-update // config.ranks)
    of_each = min(rows, max(1, config.micro_batch_tokens // length))
    return Batch(rows, length, -(-rows // of_each), of_each)


def fullest(config: PlanConfig) -> tuple[int, int]:
    """Returns the samples, and the tokens of each, in the largest micro-batch: of mean samples, or of the longest."""
    lengths = {prompt_tokens(config) + n for n in (completion_tokens(config), config.max_completion_length)}
    batch = max((batch_of(config, length) for length in lengths), key=lambda b: (b.tokens, b.length))
    return batch.rows_of_each, batch.length
