"""Records what a step does to single tokens: whole batches for `compare-batch`, and some completions for `watch`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batch.collate import collate, loss_batch
from ..common.console import say
from ..common.text import one_line
from ..losses import Loss, Stats, token_pull
from ..policy.learn import StepProgress
from ..policy.learn import score as score_samples
from ..runs.batches import write_batch
from ..runs.tokens import Pieces, TokenFiles, TracedTokens, choose, completion_records, token_tensors
from ..types import Sample, TokenScores, Update

if TYPE_CHECKING:
    from .run import Run


@contextmanager
def recording(run: Run, step: int, progress: StepProgress) -> Iterator[None]:
    """Records the learning of step `step`, counted from 0, as --record_batches and --log_tokens ask for."""
    trace = run.meters.token_trace
    if trace is not None:
        trace.begin(progress, run.learning.sampled == "full")
    with _recorded_batch(run, step, progress):
        yield
    if trace is not None:
        trace.write(run, step + 1, progress)


@contextmanager
def _recorded_batch(run: Run, step: int, progress: StepProgress) -> Iterator[None]:
    """Records the first update's tokens before and after a step's learning, for the first --record_batches steps."""
    wanted = step < run.config.record_batches
    if wanted and progress.done:
        say(f"note: the batch of step {step + 1} is not recorded: it was under way when the run stopped")
    if not wanted or progress.done or not progress.updates[0].samples:
        yield
        return
    samples = progress.updates[0].samples
    old = score_samples(run.policy, samples, run.learning)
    yield
    new = score_samples(run.policy, samples, run.learning)
    with run.world.together():
        if run.world.is_main:
            write_batch(run.output / "batches" / f"step-{step + 1}.safetensors", samples, old, new)


@dataclass
class TokenTrace:
    """Follows some completions through the updates of a step, with --log_tokens.

    Args:
        count: completions of each step to follow.
        loss: the run's loss.
        pieces: the texts of tokens.
        files: the run's files (None: another rank writes them).
    """

    count: int
    loss: Loss
    pieces: Pieces
    files: TokenFiles | None
    chosen: list[int] = field(default_factory=list)  # numbers over all completions of the step
    first: list[int] = field(default_factory=list)  # the number of each update's first completion
    # What the last pass over each update did: the chosen samples of this rank, their log-probs, and the statistics.
    seen: dict[int, tuple[list[Sample], Mapping[int, Tensor], Stats | None]] = field(default_factory=dict)
    traced: dict[int, TracedTokens] = field(default_factory=dict)  # what they did to this rank's samples
    compared: bool = True
    seconds: float = 0.0
    failed: bool = False

    def begin(self, progress: StepProgress, compared: bool) -> None:
        """Chooses completions of the step. `compared`: the sampler's log-probs can be compared with the policy's."""
        began = time.perf_counter()
        self.chosen, self.seen, self.compared = choose(progress.groups, self.count), {}, compared
        size = -(-len(progress.groups) // max(1, len(progress.updates)))
        counts = [len(group.rollouts) for group in progress.groups]
        self.first = [sum(counts[: number * size]) for number in range(len(progress.updates))]
        self.seconds = time.perf_counter() - began

    def observe(self, number: int, update: Update, logps: Mapping[int, Tensor], stats: Stats | None) -> None:
        """Notes an update that has just been trained on.

        Args:
            number: its number within the step.
            update: the update.
            logps: this rank's log-probs of its forward: sample index → [T_i].
            stats: the statistics of the whole update, or None.
        """
        began = time.perf_counter()
        wanted = {i - self.first[number] for i in self.chosen}
        samples = [s for s in update.samples if s.index in wanted and s.index in logps]
        self.seen[number] = samples, {s.index: logps[s.index] for s in samples}, stats
        self.seconds += time.perf_counter() - began

    def write(self, run: Run, step: int, progress: StepProgress) -> None:
        """Writes the file of step `step`, counted from 1. If it can't be written, warns once, and the run goes on."""
        began = time.perf_counter()
        with self._watching():
            self.traced = self._trace()
        traced = _gathered(run, self.traced)  # all ranks call it, whatever has failed
        with self._watching():
            if self.files is not None and self.chosen and not self.failed:
                tensors, texts = token_tensors(progress.groups, self.chosen, traced, self.pieces)
                records = completion_records(progress.groups, self.chosen, run.rewards)
                self.files.write(step, tensors, texts, records)
        self.seen, self.traced = {}, {}
        self.seconds += time.perf_counter() - began

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Warns once where recording fails: it only watches, and the run goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            if not self.failed:
                say(
                    f"warning: --log_tokens: no more tokens are recorded: {type(error).__name__}: {one_line(error)}"
                )
            self.failed = True

    def _trace(self) -> dict[int, TracedTokens]:
        """Computes what the step's updates did to the chosen completions of this rank: number over all → what was done."""
        if self.failed:
            return {}
        found = {
            number: trace_samples(self.loss, *seen, self.compared)
            for number, seen in self.seen.items()
            if seen[0]
        }
        return {
            self.first[number] + index: traced
            for number, own in found.items()
            for index, traced in own.items()
        }


def trace_samples(
    loss: Loss, samples: list[Sample], logps: Mapping[int, Tensor], stats: Stats | None, compared: bool
) -> dict[int, TracedTokens]:
    """Computes what an update did to some of its samples, from the log-probs of its forward.

    Args:
        loss: the loss.
        samples: samples of the update, whole.
        logps: sample index → [T_i] log-probs under the policy before the update.
        stats: the statistics of the whole update, where the loss has them.
        compared: whether the sampler's log-probs may be compared with the policy's.

    Returns:
        Sample index → what was done to its tokens.
    """
    device = torch.device("cpu") if stats is None else stats.sequence_ids.device
    micro = collate(samples, "padded", device, compared=compared)
    flat = torch.cat([logps[sample.index] for sample in samples]).to(device)
    batch = loss_batch(micro, TokenScores(flat, torch.zeros_like(flat) if loss.needs_entropies else None))
    pulled = token_pull(loss, batch, stats)
    if loss.surrogate.weighs_itself:  # a sample whose group has no signal is not looked at
        counts = [sample.length for sample in samples]
        used = torch.cat([part.any().expand(len(part)) for part in pulled.policy.split(counts)])
        pulled = replace(pulled, factor=pulled.factor * used)
    ratios = torch.ones_like(flat) if micro.old_logps is None else (flat - micro.old_logps).exp()
    parts = [
        column.detach().cpu().split([sample.length for sample in samples])
        for column in (ratios, pulled.pull, pulled.policy, pulled.factor)
    ]
    return {
        sample.index: TracedTokens(sample.trainable, *(part[k] for part in parts))
        for k, sample in enumerate(samples)
    }


def _gathered(run: Run, traced: Mapping[int, TracedTokens]) -> dict[int, TracedTokens]:
    """Gathers what all ranks have traced. A collective."""
    flat = {f"{i}/{name}": value for i, found in traced.items() for name, value in vars(found).items()}
    fields: dict[int, dict[str, Tensor]] = {}
    for part in run.world.gather_tensors(flat):
        for key, value in part.items():
            i, name = key.split("/")
            fields.setdefault(int(i), {})[name] = value
    return {i: TracedTokens(**found) for i, found in fields.items()}
