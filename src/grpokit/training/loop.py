"""The whole journey on one screen.

    prompts → rollouts → rewards → (resample) → advantages → updates with fixed weights → optimizer steps → record

`run.py` has a run's parts, `setup/` puts them together, and each arrow is a room.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..batch.advantages import add_advantages, mask_truncated
from ..batch.plan import plan_step
from ..policy.learn import StepProgress, learn
from ..policy.optimizer import set_learning_rate
from ..rewards import reward_metrics
from .clock import Clock
from .measure import rollout_metrics
from .run import Run, Step
from .scoring import EarlyScores, score_step


def iter_steps(run: Run, progress: StepProgress | None = None) -> Iterator[Step]:
    """Trains to `max_steps`, and yields each step once it is recorded. `progress`, a checkpoint's step, is finished first."""
    for step in run.remaining_steps():
        clock = run.meters.clock()
        try:
            with clock("step"):
                progress = progress or sample_step(run, step, clock)
                run.rollouts.begin_next(step)  # with --async_depth 1, the next step's
                metrics = set_learning_rate(run.optimizer, run.config, step)
                how = run.policy, run.reference, progress, run.loss, run.optimizer, run.learning
                with clock("learn"), run.recording(step, progress):
                    metrics |= learn(*how)
                run.rollouts.sync(clock)
            metrics |= reward_metrics(progress.groups, run.rewards) | rollout_metrics(progress.groups)
            done = run.finish_step(step + 1, progress, metrics, clock)
            progress = None  # with it, the run's state has moved on
            run.save_if_due()
        except BaseException as error:
            run.rescue(error, progress)
            raise
        yield done


def sample_step(run: Run, step: int, clock: Clock) -> StepProgress:
    """Samples and scores a step's groups, and fixes the weights of its updates."""
    config, chosen = run.config, run.step_groups(step)
    while chosen.missing:  # once; again where dynamic sampling replaces groups without signal
        prompts = run.prompts.take(chosen.position, chosen.missing)
        early = EarlyScores(run, step, clock) if config.stream_rewards else None
        groups = run.rollouts.sample(prompts, step, clock, early and early.take)
        with clock("reward"):
            chosen.add(*score_step(run, step, groups, prompts, early))
    groups = add_advantages(chosen.groups, run.estimator, *run.advantage_settings)
    groups = mask_truncated(groups) if config.mask_truncated_completions else groups
    groups = run.teachers.teach(groups, run.learning, clock)
    updates = plan_step(groups, run.loss, config.updates_per_step, run.world.size)  # fixes every weight
    run.rollouts.observe(step, chosen.kept + chosen.refused)
    return StepProgress(updates, groups, metrics=run.sampling_metrics(chosen, groups))
