"""Drives a run from its start to its final model: what `grpokit train` and `GRPOTrainer` share."""

from __future__ import annotations

from collections.abc import Iterator

from ..common.console import StepDisplay, say, waiting
from ..config.options import TrainConfig
from ..parallel import World
from ..policy.learn import StepProgress
from .about import write_about
from .loop import iter_steps
from .publish import check_publishing, publish
from .run import Run, Step
from .setup.announce import announce_loss, announce_optimizer, announce_settings
from .setup.parts import Parts
from .setup.start import start
from .signals import StopRequest


def open_run(
    config: TrainConfig, world: World, stop: StopRequest, parts: Parts | None = None
) -> tuple[Run, StepProgress | None]:
    """Prints a run's settings, builds the run, and prints what its options will do.

    Args:
        config: the run's configuration.
        world: the ranks.
        stop: asked between micro-batches whether to stop.
        parts: objects in the place of names, from Python.

    Returns:
        The run, and the progress of the step that a checkpoint was written in (None: the run is between two steps).
    """
    announce_settings(config, world.size)
    check_publishing(config, world)
    run, progress = start(config, world, stop, parts)
    announce_loss(config, run.loss, run.layout)
    announce_optimizer(run.optimizer)
    write_about(run)
    return run, progress


def iter_session(run: Run, progress: StepProgress | None = None, shows: bool = True) -> Iterator[Step]:
    """Evaluates before the first step, then yields each step, until the last one or a callback's "stop".

    Args:
        run: a run between two steps.
        progress: the step that was under way when its checkpoint was written, if any.
        shows: whether to draw a progress bar.

    Yields:
        Each step once it is recorded and the callbacks have seen it.
    """
    config = run.config
    run.callbacks.stops = False
    if not run.recorder.evaluations:
        try:
            run.evaluate(run.state.step)
        except BaseException as error:
            run.rescue(error, progress)
            raise
    if run.callbacks.stops:
        return
    first = run.rewards[0].name if run.rewards else ""
    display = StepDisplay(run.state.step, config.max_steps, config.logging_steps, first, shows)
    with display:
        for step in iter_steps(run, progress):
            display.show(step.step, step.metrics)
            try:
                run.callbacks.call("on_step_end", step.step, step.metrics, step.groups)
            except BaseException as error:
                run.rescue(error)
                raise
            yield step
            if run.callbacks.stops:
                say(f"a callback ended the run after step {step.step} of {config.max_steps}")
                return


def finish_run(run: Run) -> None:
    """Writes the final model and the report, and uploads the model; an error in writing leaves a checkpoint."""
    with waiting("writing the final model and the report"):
        try:
            run.finish()
        except BaseException as error:
            run.rescue(error)
            raise
    publish(run)


def train_to_end(run: Run, progress: StepProgress | None = None) -> None:
    """Trains a run to its end and writes the final model."""
    for _ in iter_session(run, progress):
        pass
    finish_run(run)
