"""Every note that a run has for its user: the plan, options that would do nothing, steps that teach nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.optim import Optimizer

from ...common.console import say
from ...config.options import TrainConfig
from ...config.sampled import shaping_flags
from ...config.teacher_options import teaches_alone
from ...config.yaml import to_yaml
from ...losses import Loss
from ...losses.lint import correction_note, notes
from ...policy.layout import LayoutChoice
from ...policy.optimizer import describe_optimizer
from ...runs.advice import Adviser
from ...types import RolloutGroup
from .loss import objective_of

STEPS_WITHOUT_SIGNAL = 5  # steps without anything to learn from, before the run says so


def announce_settings(config: TrainConfig, ranks: int) -> None:
    """Prints the settings that were changed, and the plan of a step."""
    say(to_yaml(config, only_changed=True).strip())
    say(f"(all other settings are at their defaults; {config.output_dir}/config.yaml will list them)\n")
    say(batch_plan(config, ranks))


def announce_loss(config: TrainConfig, loss: Loss, layout: LayoutChoice) -> None:
    """Prints the loss, and a note for each option that would do nothing."""
    say(f"loss: {objective_of(config, loss)[0]}")
    for note in [] if teaches_alone(config) else start_notes(config, loss, layout):
        say(f"note: {note}")


def announce_optimizer(optimizer: Optimizer) -> None:
    """Prints which parameters are whose, where not all are AdamW's alike."""
    if text := describe_optimizer(optimizer):
        say(text)


def start_notes(config: TrainConfig, loss: Loss, layout: LayoutChoice) -> list[str]:
    """The notes at a run's start: options that do nothing, and defaults that were chosen for the user."""
    updates = config.num_iterations * config.updates_per_step
    found = notes(loss, updates, sampler_is_trainer=config.sampler == "transformers")
    if flags := shaping_flags(config):
        age = "; rollouts that are one step old are not corrected" if config.async_depth else ""
        found.append(
            f"{flags}: completions come from another distribution than the one that is trained, so sampler and trainer are "
            f"not compared: the metrics sampler_kl and sampler/* are left out{_kept_mass(config)}{age}"
        )
    else:
        chosen = config.correction or config.correction_mode
        found += filter(None, [correction_note(loss, config.async_depth, chosen)])
    if config.correction and loss.correction is not None:
        found.append(f"--correction {config.correction}: {loss.correction}")
    if config.eval_steps and config.dataset and not config.eval_dataset:
        found.append(f"--eval_steps {config.eval_steps} does nothing without --eval_dataset")
    if layout.shares_not is not None:
        found.append(f"each completion's forward computes its prompt again: {layout.shares_not}")
    return found


def _kept_mass(config: TrainConfig) -> str:
    """Names the metric that comes in the place of the sampler's."""
    return ", but for sampler/kept_mass, the share kept" if config.repetition_penalty == 1 else ""


class StepNotes:
    """Says once what is wrong with a run's steps.

    Args:
        output: the run's directory.
        adviser: the rules, which have seen the steps before this process.
    """

    def __init__(self, output: Path, adviser: Adviser) -> None:
        self.output, self.adviser = output, adviser
        self.steps = 0  # since this process began
        self.without_signal = 0.0  # steps in a row; minus infinity once one taught something

    def check(self, row: Mapping[str, float], groups: Sequence[RolloutGroup] = ()) -> None:
        """Looks at the metrics of one more step, and at its groups."""
        self.steps += 1
        of_tokens = [a for group in groups for a in group.token_advantages or () if len(a)]
        is_one = any(a.any() for a in of_tokens) and all(bool((a == a[0]).all()) for a in of_tokens)
        if self.steps == 1 and is_one:
            say(
                "note: each completion of this step has one advantage for all its tokens: --turn_discount acts where an episode "
                "has several turns, or a reward function gives rewards to tokens; a function of yours, where its numbers differ"
            )
        if "reward" not in row and "reward/unscored" in row and self.steps == 1:
            say(
                "note: no reward function applied to any completion of this step, so nothing was learned from it"
            )
        self.without_signal = (
            self.without_signal + 1
            if row.get("frac_reward_zero_std") == 1 and not row.get("grad_norm")
            else -math.inf
        )
        if self.without_signal == STEPS_WITHOUT_SIGNAL:
            say(
                f"note: in the first {STEPS_WITHOUT_SIGNAL} steps, no group had differing rewards, so nothing was learned; "
                f"see {self.output}/completions.jsonl"
            )

    def advise(self, step: int, row: Mapping[str, float]) -> None:
        """Says the advice that step `step`, counted from 1, gives for the first time."""
        for advice in self.adviser.add({"step": step, **row}):
            say(f"advice at step {advice.step}: {advice.text} (docs/en/{advice.guide})")


def batch_plan(config: TrainConfig, ranks: int = 1) -> str:
    """The step in one line: what is sampled, how often it is learned from, and in what pieces."""
    p, g, u, n = (
        config.prompts_per_step,
        config.num_generations,
        config.updates_per_step,
        config.num_iterations,
    )
    return (
        f"plan: {_count(p, 'prompt')} × {g} = {p * g} completions a step, {_count(u, 'update')} of "
        f"{p * g // u} completions × {_count(n, 'iteration')}, {_ranks(config, ranks)}, "
        f"≤ {config.micro_batch_tokens:,} tokens a micro-batch, {_length(config)}"
    )


def _length(config: TrainConfig) -> str:
    if config.num_train_epochs:
        return f"{config.num_train_epochs:g} epochs"
    return _count(config.max_steps, "step")


def _ranks(config: TrainConfig, ranks: int) -> str:
    if ranks == 1:
        return "1 process"
    copies = ranks // config.shard_size if config.shard_size else 1
    return f"{ranks} ranks" + (f" ({copies} copies of the weights)" if copies > 1 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
