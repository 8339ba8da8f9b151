"""Measures the phases of a step: wall time, FLOPs and peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

from ..parallel import ALONE, World
from ..policy.flops import Work
from ..types import Metric, Metrics
from .memory import PeakMemory, resident_memory

# Logged in every step, as 0 where the phase did not run.
PHASES = ("step", "rollout", "reward", "learn", "sync")
GIB = 2**30
MARK = "grpokit/"  # before a phase's name in a profiler's trace


class Clock:
    """Wall time, FLOPs and peak memory by phase: `with clock("rollout"): ...`. Phases may nest.

    Args:
        memory: reads the peak memory (None: it is not measured).
        work: counts the FLOPs of passes over micro-batches (None: they are not counted).
        overlaps: whether sampling overlaps with training, so that the time of a rollout is only that of waiting for it.
    """

    def __init__(
        self, memory: PeakMemory | None = None, work: Work | None = None, overlaps: bool = False
    ) -> None:
        self.memory, self.work, self.overlaps = memory, work or Work(), overlaps
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        self.peaks: dict[str, int] = {}  # bytes
        self.open: list[str] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._note_peak()
        self.open.append(phase)
        start, work = time.perf_counter(), self.work.flops
        with record_function(MARK + phase):
            yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        self.flops[phase] = self.flops.get(phase, 0.0) + self.work.flops - work
        self._note_peak()
        self.open.pop()

    def _note_peak(self) -> None:
        """Adds the peak since the last call to every open phase, and resets it."""
        peak = None if self.memory is None else self.memory.take()
        if peak is None:
            return
        for phase in self.open:
            self.peaks[phase] = max(self.peaks.get(phase, 0), peak)

    def metrics(
        self, completion_tokens: float, world: World = ALONE, sampled: float = 0.0, peak: float | None = None
    ) -> Metrics:
        """Returns time, memory, tokens per second and FLOP/s, of the step and of its phases.

        Args:
            completion_tokens: tokens of the step's completions, of all ranks.
            world: the ranks. Times and memory are the largest of any rank.
            sampled: FLOPs of sampling, of all ranks (0: not known).
            peak: FLOP/s that a rank's device can do (None: not known).
        """
        seconds = {**dict.fromkeys(PHASES, 0.0), **self.seconds}
        found = {f"time/{phase}": _most(value) for phase, value in seconds.items()}
        found |= {
            f"memory/{phase}": _most(value / GIB) for phase, value in self.peaks.items() if phase != "step"
        }
        if self.memory is not None and (host := resident_memory()):
            found["memory/host"] = _most(host / GIB)
        learned = {"flops": Metric.sum(torch.tensor(self.flops.get("learn", 0.0), dtype=torch.float64))}
        found = world.join_metrics(found | learned)
        flops = {"learn": found.pop("flops").value} | ({} if self.overlaps else {"rollout": sampled})
        found["tokens_per_second"] = Metric.share(completion_tokens, found["time/step"].value)
        for phase, work in flops.items():
            lasted = found[f"time/{phase}"].value
            if lasted:
                found[f"tokens_per_second/{phase}"] = Metric.share(completion_tokens, lasted)
            if lasted and work:
                found[f"tflops/{phase}"] = Metric.share(work / world.size / 1e12, lasted)
            if lasted and work and peak:
                found[f"mfu/{phase}"] = Metric.share(work / world.size / peak, lasted)
        return found


def _most(value: float) -> Metric:
    return Metric.max(torch.tensor([value]))
