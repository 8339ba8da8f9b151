"""Profiles some steps: a trace for Perfetto, and a table of where a step's time and memory go, by phase (--profile_steps)."""

from __future__ import annotations

import bisect
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile

from ..common.console import say, waiting
from ..common.text import count, one_line
from ..common.writing import write_text
from .clock import GIB, MARK
from .plan.estimate import LEARNING, REDUCING, SAMPLING, STEPPING, Plan
from .plan.of_run import plan_run

if TYPE_CHECKING:
    from .run import Run

FOLDER = "profile"
MOST_OPS = 8  # operations in the table of a phase
MAIN_PHASES = ("rollout", "reward", "teacher", "learn", "sync")  # they don't nest
# The phases of a plan that a phase of the clock covers.
PLANNED = {"rollout": (SAMPLING,), "learn": (LEARNING, REDUCING, STEPPING)}


@dataclass
class OpTotal:
    """The totals of one operation within a phase, over the profiled steps. Example: `OpTotal(seconds=0.5, calls=3)`"""

    seconds: float = 0.0  # its own, without the operations that it calls; the device's on a GPU
    calls: int = 0
    allocated: int = 0  # bytes that it allocated and did not free
    flops: int = 0  # the profiler's count


@dataclass
class StepProfiler:
    """Profiles `steps` steps of a run after its first one, and then writes the trace and the table.

    Args:
        steps: --profile_steps (0: nothing is profiled).
        folder: the directory of the profile.
    """

    steps: int
    folder: Path
    begun: int = 0  # steps that this process has begun
    rows: list[Mapping[str, float]] = field(default_factory=list)  # the metrics of the profiled steps
    profiler: Any = None

    def begin_step(self, run: Run, remaining: int) -> None:
        """Starts the profiler before the run's second step, or the first if none follows; finishes it when it has seen enough.

        Call it before each step; `remaining` steps are left, this one included.
        """
        if self.profiler is not None and len(self.rows) == self.steps:
            self.finish(run)
        self.begun += 1
        if self.steps and not self.rows and (self.begun == 2 or remaining == 1):
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if run.policy.device.type == "cuda" else []
            self.profiler = profile(
                activities=activities,
                record_shapes=True,
                profile_memory=True,
                with_flops=True,
                acc_events=True,
            )
            self.profiler.start()

    def end_step(self, row: Mapping[str, float]) -> None:
        """Takes the metrics of a step that is done."""
        if self.profiler is not None and len(self.rows) < self.steps:
            self.rows.append(row)

    def finish(self, run: Run) -> None:
        """Stops the profiler and writes the profile. If it can't be written, prints a warning, and the run goes on."""
        if self.profiler is None:
            return
        profiler, self.profiler, self.steps = self.profiler, None, 0
        with waiting("writing the profile"):
            try:
                profiler.stop()
                if not self.rows:
                    return
                self.folder.mkdir(parents=True, exist_ok=True)
                profiler.export_chrome_trace(str(self.folder / f"trace-rank-{run.world.rank}.json.gz"))
                text = describe(
                    self.rows,
                    operations(profiler.events()),
                    *planned_memory(run, self.rows),
                    run.meters.memory.before,
                )
                if run.world.is_main:
                    write_text(self.folder / "profile.md", text)
            except Exception as error:  # noqa: BLE001 - it only watches, and the run goes on
                where = run.recorder.write_error(error) if run.world.is_main else ""
                what = f"{type(error).__name__}: {one_line(error)}"
                say(f"warning: --profile_steps: the profile could not be written ({what}; {where})")
                return
        say(
            f"\n{text.split('## ')[0].rstrip()}\n\nprofile: {self.folder}/profile.md, and a trace for Perfetto beside it"
        )


def operations(events: Iterable[Any]) -> dict[str, dict[str, OpTotal]]:
    """Adds up a profiler's events: phase → operation → total. Events outside all phases are left out.

    Args:
        events: `profiler.events()`; a main phase is an event named MARK + phase.
    """
    events = [event for event in events if event.device_type.name == "CPU"]
    marks = sorted(
        (event.time_range.start, event.time_range.end, event.name.removeprefix(MARK))
        for event in events
        if event.name.removeprefix(MARK) in MAIN_PHASES and event.name.startswith(MARK)
    )
    starts = [start for start, _, _ in marks]
    found: dict[str, dict[str, OpTotal]] = defaultdict(lambda: defaultdict(OpTotal))
    for event in events:
        place = bisect.bisect_right(starts, event.time_range.start) - 1
        if event.name.startswith(MARK) or place < 0 or event.time_range.start > marks[place][1]:
            continue
        total = found[marks[place][2]][event.name]
        total.seconds += (event.self_device_time_total or event.self_cpu_time_total) / 1e6
        total.calls += 1
        total.allocated += max(0, event.self_cpu_memory_usage) + max(0, event.self_device_memory_usage)
        total.flops += event.flops or 0
    return {phase: dict(ops) for phase, ops in found.items()}


def planned_memory(run: Run, rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], str]:
    """Returns the GiB of each phase that `grpokit plan` says for this run, and why it can't say if it can't."""
    tokens = statistics.fmean(row.get("completions/mean_length", 1.0) for row in rows)
    count = run.config.prompts_per_step * run.config.num_generations
    prompts = statistics.fmean(row.get("num_tokens", 0.0) for row in rows) / count - tokens
    lengths = max(1, round(prompts)), max(1, min(round(tokens), run.config.max_completion_length))
    try:
        plan = plan_run(run.config, run.world.size, run.policy.device.type, *lengths)
    except (ValueError, OSError, RuntimeError) as error:
        return {}, one_line(error)
    return memory_of_phases(plan), ""


def memory_of_phases(plan: Plan) -> dict[str, float]:
    """Returns the GiB that a plan says for each phase of the clock."""
    return {phase: max(plan.phase(part) for part in parts) / GIB for phase, parts in PLANNED.items()}


def describe(
    rows: Sequence[Mapping[str, float]],
    ops: Mapping[str, Mapping[str, OpTotal]],
    planned: Mapping[str, float],
    unplanned: str,
    before: int | None,
) -> str:
    """Returns the profile as Markdown: a table of phases, and one of operations for each phase.

    Args:
        rows: the metrics of the profiled steps.
        ops: see `operations`.
        planned: GiB of each phase by the plan.
        unplanned: why there is no plan, or "".
        before: bytes that the process had before the model was loaded, where peaks include them.
    """
    times = {name: statistics.fmean(row.get(name, 0.0) for row in rows) for name in rows[0]}
    whole = times["time/step"]
    phases = [phase for phase in MAIN_PHASES if times.get(f"time/{phase}")]
    lines = [
        f"# Profile of {count(len(rows), 'step')}",
        "",
        f"A step took {whole:.3g} s. A profiled step is slower than the others, above all where operations are small.",
        "",
        "| phase | seconds | share | TFLOP/s | MFU | FLOPs, profiler's | FLOPs, ours | peak GiB | planned GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for phase in sorted(phases, key=lambda name: -times[f"time/{name}"]):
        seconds = times[f"time/{phase}"]
        counted = sum(op.flops for op in ops.get(phase, {}).values()) / len(rows)
        achieved = times.get(f"tflops/{phase}")
        ours = achieved and achieved * seconds * 1e12
        lines.append(
            f"| {phase} | {seconds:.3g} | {seconds / whole:.0%} | {_cell(achieved)} | "
            f"{_cell(times.get(f'mfu/{phase}'), '.1%')} | {_cell(counted or None)} | {_cell(ours)} | "
            f"{_cell(times.get(f'memory/{phase}'))} | {_cell(planned.get(phase))} |"
        )
    other = whole - sum(times[f"time/{phase}"] for phase in phases)
    lines.append(f"| other | {max(0.0, other):.3g} | {max(0.0, other) / whole:.0%} | | | | | | |")
    lines += ["", *_notes(unplanned, before)]
    for phase, found in ops.items():
        lines += ["", f"## {phase}", "", *_operations_table(found, len(rows))]
    return "\n".join(lines) + "\n"


def _operations_table(found: Mapping[str, OpTotal], steps: int) -> list[str]:
    """Returns the operations that took most of a phase, with their share of all of its operations."""
    whole = sum(op.seconds for op in found.values()) or 1.0
    lines = [
        "| operation | seconds a step | share | calls a step | MiB allocated a step |",
        "|---|---|---|---|---|",
    ]
    for name, op in sorted(found.items(), key=lambda item: -item[1].seconds)[:MOST_OPS]:
        lines.append(
            f"| `{name}` | {op.seconds / steps:.3g} | {op.seconds / whole:.0%} | {op.calls / steps:,.0f} | "
            f"{op.allocated / steps / 2**20:,.1f} |"
        )
    return lines


def _notes(unplanned: str, before: int | None) -> list[str]:
    """Explains the columns."""
    memory = (
        "the allocator's"
        if before is None
        else f"the process's, which had {before / GIB:.2g} GiB before the model was loaded"
    )
    text = (
        "TFLOP/s and MFU are from the model's shapes (docs/en/profiling.md): attention is counted, padding is not. The profiler "
        f"counts matrix products, padding too, but no fused attention. Peak memory is {memory}; the plan counts tensors alone."
    )
    return [text, "", f"There is no plan: {unplanned}"] if unplanned else [text]


def _cell(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"
