"""`grpokit train`: one process, or all ranks of a job under torchrun, and one message for whatever ends it."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

from ..config.checks import check_train_config
from ..config.options import TrainConfig
from .messages import fail, quiet, tell

if TYPE_CHECKING:
    from ..parallel import World
    from ..training.signals import StopRequest


def train(config: TrainConfig) -> int:
    """`grpokit train`, in one process or under torchrun."""
    check_train_config(config)
    from ..common.console import waiting

    with waiting("loading torch and the model"):
        quiet()
        from ..parallel import end_process, from_torchrun
        from ..training.signals import StopRequest
    code = _train_among_ranks(config, StopRequest())
    if from_torchrun():
        end_process(code)
    return code


def _train_among_ranks(config: TrainConfig, stop: StopRequest) -> int:
    from ..common.console import say
    from ..parallel import joined_world
    from ..training.signals import Stopped

    say_stop = tell if int(os.environ.get("RANK", "0")) == 0 else (lambda text: None)
    with joined_world(config.ddp_timeout) as world, stop.listening(say_stop):
        try:
            return _train(config, world, stop)
        except Stopped as stopped:
            say(f"stopped by {stopped}")
            return stopped.exit_code
        except Exception as error:
            if world.size == 1:
                raise
            return _fail_among_ranks(error, world)


def _train(config: TrainConfig, world: World, stop: StopRequest) -> int:
    from ..training.session import open_run, train_to_end
    from ..training.signals import Stopped

    run, progress = open_run(config, world, stop)
    try:
        train_to_end(run, progress)
    except Exception as error:
        if world.is_main and not isinstance(error, Stopped):
            error.add_note(run.recorder.write_error(error))
        raise
    finally:
        run.close()
    return 0


def _fail_among_ranks(error: Exception, world: World) -> int:
    """One message for the whole job, from the rank that knows the cause, or else from one that misses another."""
    from ..parallel import FailedOnSomeRank, is_lost_connection, whereabouts

    own = error.__cause__ if isinstance(error, FailedOnSomeRank) else error
    if is_lost_connection(error):
        lost = world.lost_peer()
        if lost is not None:
            fail(f"{whereabouts(world)}: {lost}; continue with --resume_from_checkpoint auto")
        return 1
    if own is not None and world.is_first_to_fail():
        fail(f"{whereabouts(world)}: {own}", *getattr(error, "__notes__", []))
        if not isinstance(own, ValueError | OSError):
            traceback.print_exception(own)
    return 2 if isinstance(own, ValueError) else 1
