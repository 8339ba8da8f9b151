"""The whole journey on one screen.

    prompts → rollouts → rewards → advantages → step plan (weights) → log-probs → loss → update → metrics, checkpoint

What is not here: how a run is put together and what it writes (`run.py`), and everything inside each arrow.
"""

from __future__ import annotations

from ..batch.advantages import add_advantages, mask_truncated
from ..batch.plan import plan_step
from ..common.console import StepDisplay
from ..policy.learn import StepProgress, learn
from ..policy.optimizer import learning_rate, set_learning_rate
from ..rewards import reward_metrics
from ..rollouts.resample import resample
from .measure import Clock, rollout_metrics
from .run import Run


def train(run: Run) -> None:
    """Train from where `run` stands to `max_steps`, evaluating, logging and saving on the way."""
    config, ranks = run.config, run.world.size
    if not run.evaluations:
        run.evaluate(run.state.step)
    with StepDisplay(run.state.step, config.max_steps, config.logging_steps, run.rewards[0].name) as display:
        for step in range(run.state.step, config.max_steps):
            clock = Clock()
            with clock("step"):
                if run.unfinished is None:  # else a checkpoint has brought a step back in its midst
                    groups, filtered = resample(
                        run.prompts.take,
                        lambda prompts, clock=clock: run.complete(prompts, clock),  # sample, and score
                        step,
                        config.prompts_per_step,
                        config.max_resample_times,
                        run.reward_weights,
                    )
                    groups = add_advantages(
                        groups, config.advantage_estimator, run.scale_rewards, run.reward_weights
                    )
                    if config.mask_truncated_completions:
                        groups = mask_truncated(groups)
                    # The weights are fixed here.
                    updates = plan_step(groups, run.loss, config.updates_per_step, ranks)
                    run.unfinished = StepProgress(updates, groups, metrics=filtered | run.staleness(groups))
                run.sample_ahead()  # with --async_depth 1, the next step's
                rate = set_learning_rate(run.optimizer, learning_rate(config, step))
                with clock("learn"), run.recording(step, run.unfinished):
                    learned = learn(
                        run.policy, run.reference, run.unfinished, run.loss, run.optimizer, run.how
                    )
                run.sync(clock)
            groups = run.unfinished.groups
            tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
            found = reward_metrics(groups, run.rewards) | rollout_metrics(groups) | learned | rate
            display.show(step + 1, run.record(step + 1, groups, found | clock.metrics(tokens, run.world)))
    run.finish()
