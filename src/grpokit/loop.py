"""The whole journey on one screen.

    prompts → rollouts → rewards → advantages → step plan (weights) → log-probs → loss → update → metrics, checkpoint

What is not here: how a run is put together and what it writes (`run.py`), and everything inside each arrow.
"""

from __future__ import annotations

import torch

from .advantages import with_advantages
from .batching import plan_step
from .console import StepDisplay
from .metrics import Clock, rollout_metrics
from .optimizer import learning_rate
from .rewards import reward_metrics, score
from .run import Run
from .step import learn
from .types import Metric


def train(run: Run) -> None:
    """Train from where `run` stands to `max_steps`, evaluating, logging and saving on the way."""
    config = run.config
    prompts_per_step, generations = config.prompts_per_step, config.num_generations
    if not run.evaluations:
        run.evaluate(run.state.step)
    with StepDisplay(run.state.step, config.max_steps, config.logging_steps, run.rewards[0].name) as display:
        for step in range(run.state.step, config.max_steps):
            clock = Clock()
            with clock("step"):
                prompts = run.prompts.take(step * prompts_per_step, prompts_per_step)
                with clock("rollout"):
                    groups = run.sampler.sample(prompts, generations)
                with clock("reward"):
                    groups = score(groups, run.rewards)
                groups = with_advantages(
                    groups, config.advantage_estimator, run.scale_rewards, run.reward_weights
                )
                updates = plan_step(groups, run.loss, config.updates_per_step)  # weights fixed here
                rate = set_learning_rate(run.optimizer, learning_rate(config, step))
                with clock("learn"), run.recording(step, updates):
                    learned = learn(run.policy, run.reference, updates, run.loss, run.optimizer, run.how)
                with clock("sync"):
                    run.sampler.sync()
            tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
            metrics = reward_metrics(groups, run.rewards) | rollout_metrics(groups) | learned | rate
            display.show(step + 1, run.record(step + 1, groups, metrics | clock.metrics(tokens)))
    run.finish()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> dict[str, Metric]:
    """Set it, and return it as a metric."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return {"learning_rate": Metric.share(rate, 1)}
