"""Running grpokit of some commit: each run in a child that is forked once torch is imported, so that it starts at once.

Nothing of grpokit is imported before the fork. The child is as `python -m grpokit` would be: random states, default
types and caches are those of a new process, and its grpokit is the one it was told to use.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .cases import RESUMED, RUN, Case

# Other people's modules that a run imports: slow, and the same whatever the commit.
SLOW = (
    "torch torch.distributed.fsdp torch.distributed.tensor transformers transformers.models.qwen3.modeling_qwen3 "
    "transformers.generation.utils safetensors.torch peft tyro rich.progress yaml matplotlib.pyplot httpx"
).split()
PATIENCE = 300.0  # seconds until a run that is to be killed must have written its first checkpoint


def import_what_is_slow() -> None:
    """Import other people's modules; those that are not installed are left to the runs to miss."""
    for name in SLOW:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what is here now need not be looked through in every child
    atexit.register(gc.unfreeze)
    assert not any(name.partition(".")[0] == "grpokit" for name in sys.modules)


def fork(action: Callable[[], int], log: Path, *, leads: bool = False) -> int:
    """Do `action` in a child whose exit code is what it returns, and return its process id at once.

    What it prints goes to `log`. A child that `leads` has a process group of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if leads:
            os.setpgrp()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(handle), "w", buffering=1) for _ in range(2))
        code = action()
    except BaseException:  # noqa: BLE001 (a child must not go on as its parent)
        traceback.print_exc()
    finally:
        with suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """The exit code of a child once it has ended; minus the signal's number where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def use(code: Path) -> None:
    """From here on `import grpokit` finds the one under `code`, here and in processes that this one starts."""
    sys.path[0] = str(code)
    os.environ["PYTHONPATH"] = str(code)
    import grpokit

    found = Path(grpokit.__file__).resolve()
    if not found.is_relative_to(code.resolve()):
        raise RuntimeError(f"grpokit was to come from {code}, and came from {found}")


def grpokit(arguments: Sequence[str]) -> int:
    """`python -m grpokit` with these arguments, in this process; returns the exit code."""
    sys.argv = ["grpokit", *arguments]
    try:
        runpy.run_module("grpokit", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def leave_pictures_blank() -> None:
    """Let matplotlib save every figure as an empty SVG: no number depends on pictures, and a report has many."""
    from matplotlib.figure import Figure

    def savefig(self: Figure, file: Any, **_: Any) -> None:
        file.write('<svg viewBox="0 0 1 1" xmlns="http://www.w3.org/2000/svg"></svg>')

    Figure.savefig = savefig


def run_case(case: Case, code: Path) -> int:
    """Run a case with the grpokit under `code`, in the present directory; returns the exit code."""
    use(code)
    if not case.draws:
        leave_pictures_blank()
    if case.ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={case.ranks}"]
        return subprocess.run([*launcher, "--standalone", "-m", "grpokit", *case.arguments]).returncode
    if case.killed:
        return run_and_kill(case) or grpokit(case.arguments)
    return grpokit(case.arguments)


def run_and_kill(case: Case) -> int:
    """Start the case's run under another name, kill it after its first checkpoint, and resume it."""
    log = Path("killed.log")
    arguments = [RESUMED if word == RUN else word for word in case.arguments]
    child = fork(lambda: grpokit(arguments), log)
    deadline = time.monotonic() + PATIENCE
    while not Path(RESUMED, "checkpoint-1").is_dir():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    ended = exit_code(child)
    if ended != -signal.SIGKILL or Path(RESUMED, "final").exists():
        print(f"{log.read_text()}\nnot killed in its midst: it ended by itself with exit code {ended}")
        return 1
    return exit_code(fork(lambda: grpokit([*arguments, "--resume_from_checkpoint", "auto"]), log))
