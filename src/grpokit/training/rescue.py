"""Saves what was trained when a run stops or fails."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..common.console import say
from ..parallel import FailedOnSomeRank, end_process
from ..policy.learn import NonFiniteError, StepProgress
from ..runs.directory import make_rescue_directory
from .callbacks import CallbackError
from .signals import Stopped

if TYPE_CHECKING:
    from .run import Run


def rescue(run: Run, error: BaseException, progress: StepProgress | None = None) -> None:
    """Saves a checkpoint after a stop or an error, unless an optimizer step is half done: its weights cannot be saved.

    With several ranks, it saves only if all of them are still running.
    """
    alone = run.world.size == 1 and isinstance(error, Exception)
    together = isinstance(error, Stopped | NonFiniteError | FailedOnSomeRank)
    begun = run.state.step > 0 or progress is not None
    torn = progress is not None and progress.torn
    if begun and not torn and (alone or together):
        keep(run, progress)


def keep(run: Run, progress: StepProgress | None = None) -> None:
    """Writes the checkpoint of this moment, unless it is there, and says where it is.

    Where it can't be written, because the disk is full, say, it goes to the system's temporary directory, if that is on
    another disk and has room.
    """
    path = run.output / replace(run.state, unfinished=progress).name
    problem = None if _is_there(run, path) else _problem_with_saving(run, progress, None)
    if _is_there(run, path):
        say(f"saved {path}; continue with {run.resume_by}")
        return
    # The optimizer's state is twice as large as the parameters.
    size = 3 * sum(p.numel() * p.element_size() for p in run.policy.parameters())
    folder = run.world.from_main(make_rescue_directory(run.output, size) if run.world.is_main else None)
    if folder is not None and _problem_with_saving(run, progress, Path(folder)) is None:
        saved = f"saved {Path(folder) / path.name} instead, in a directory for temporary files"
        say(f"{problem}\n{saved}; move it to {run.output}, and continue with {run.resume_by}")
        return
    if folder is not None and run.world.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"no checkpoint of this moment: {problem}")


def _is_there(run: Run, path: Path) -> bool:
    """Checks whether the main rank sees a path. A collective."""
    return run.world.from_main(path.exists())


def _problem_with_saving(run: Run, progress: StepProgress | None, folder: Path | None) -> str | None:
    """Tries to write a checkpoint. Returns the problem, the same on every rank, or None."""
    problem = None
    try:
        run.save(progress, folder)
    except (OSError, ValueError, CallbackError, FailedOnSomeRank) as error:
        problem = str(error.__cause__ if isinstance(error, FailedOnSomeRank) and error.__cause__ else error)
    return next(filter(None, run.world.gather_json(problem)), None)


def end_stuck(run: Run, error: Exception) -> NoReturn:
    """Ends the process of a reward function that catches every interruption: saves, says why, and exits with code 1."""
    say(run.recorder.write_error(error))
    rescue(run, error)
    print(f"error: {error}", file=sys.stderr)
    end_process(1)
