"""The meters of a run: memory, FLOPs, the profiler and recorded tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.options import TrainConfig
from ..losses import Loss
from ..policy.flops import Work, peak_flops
from ..policy.policy import Policy
from ..runs.token_states import FOLDER as TOKENS
from ..runs.tokens import Pieces, TokenFiles
from .clock import Clock
from .memory import PeakMemory
from .profile import FOLDER as PROFILE
from .profile import StepProfiler
from .recording import TokenTrace


@dataclass
class Meters:
    """A run's meters. None of them changes what is trained."""

    memory: PeakMemory
    work: Work  # the FLOPs that this rank has done
    peak_flops: float | None  # FLOP/s that a rank's device can do, where that is known
    profiler: StepProfiler  # --profile_steps
    token_trace: TokenTrace | None  # --log_tokens
    overlaps: bool = False  # whether sampling overlaps with training (--async_depth 1)

    def clock(self) -> Clock:
        """Returns a clock for the phases of a new step."""
        return Clock(self.memory, self.work, self.overlaps)


def make_meters(
    config: TrainConfig,
    policy: Policy,
    loss: Loss,
    tokenizer: Any,
    before: int | None,
    step: int,
    is_main: bool,
) -> Meters:
    """Makes the meters of a run. Recorded tokens of steps after `step` are removed: a resumed run makes them again.

    Args:
        config: the run's configuration.
        policy: the model.
        loss: the run's loss.
        tokenizer: its tokenizer.
        before: bytes that the process had before the model was loaded.
        step: steps done so far.
        is_main: whether this rank writes.
    """
    output = Path(config.output_dir)
    files = TokenFiles(output / TOKENS) if is_main else None
    if files is not None:
        files.cut(step)
    trace = TokenTrace(config.log_tokens, loss, Pieces(tokenizer), files) if config.log_tokens else None
    return Meters(
        memory=PeakMemory(policy.device, before),
        work=Work(),
        peak_flops=1e12 * config.device_tflops or peak_flops(policy.device, policy.compute_dtype),
        profiler=StepProfiler(config.profile_steps, output / PROFILE),
        token_trace=trace,
        overlaps=bool(config.async_depth),
    )
