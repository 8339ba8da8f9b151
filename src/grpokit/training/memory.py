"""Peak memory of a phase: the allocator's on a GPU, the process's on a CPU (Linux)."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what a process writes to clear_refs to make its peak its present size (proc(5))


class PeakMemory:
    """Reads the most memory that was in use since the last reading.

    Args:
        device: the run's device. On a CPU it is the resident memory of the whole process.
        before: bytes that the process had before the model was loaded (None: not known).

    Example:
        >>> peak = PeakMemory(torch.device("cpu")).take()
        >>> peak is None or peak > 0
        True
    """

    def __init__(self, device: torch.device, before: int | None = None) -> None:
        self.device = device
        self.before = before if device.type == "cpu" else None
        self.reads = device.type == "cuda" or _can_reset()

    def take(self) -> int | None:
        """Returns the peak in bytes since the last call, and begins a new one; None where the system doesn't tell it."""
        if not self.reads:
            return None
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak
        peak = _status("VmHWM")
        CLEAR.write_text(RESET_PEAK)
        return peak


def resident_memory() -> int | None:
    """Returns the resident memory of the process in bytes; None where the system doesn't tell it."""
    return _status("VmRSS") if STATUS.exists() else None


def _can_reset() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return _status("VmHWM") is not None


def _status(name: str) -> int | None:
    """Returns a line of /proc/self/status in bytes, which it gives in kB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
