"""A run between two steps: everything that the loop moves, and what it leaves in its directory."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import TrainState, save_checkpoint, save_model
from .config import TrainConfig
from .console import before_after, console, counting, say
from .evaluate import evaluate
from .losses import Loss
from .losses.lint import notes
from .metrics import JsonLines, values
from .model import Policy
from .prompts import Prompts
from .recorded import write_batch
from .rewards import Reward
from .rollouts import Sampler
from .step import Learning
from .step import score as score_rows
from .types import Metric, Prompt, RolloutGroup, StepBatch


@dataclass
class Run:
    """A training run between two steps. `assemble.start` makes one; `loop.train` moves it."""

    config: TrainConfig
    loss: Loss
    policy: Policy
    reference: Policy | None
    tokenizer: Any
    prompts: Prompts
    eval_prompts: list[Prompt]
    rewards: tuple[Reward, ...]
    sampler: Sampler
    eval_sampler: Sampler
    optimizer: torch.optim.Optimizer
    state: TrainState
    output: Path
    metrics_file: JsonLines
    completions_file: JsonLines
    evaluations_file: JsonLines
    evaluations: list[dict[str, Any]]  # one for each evaluation, the first before any step
    scale_rewards: str
    first_step: int  # steps done when this process began
    finished_version: int  # policy version after the last finished step

    @property
    def reward_weights(self) -> list[float]:
        """One for each reward function."""
        return [reward.weight for reward in self.rewards]

    @property
    def notes(self) -> list[str]:
        """What of the loss's configuration would silently not act."""
        updates = self.config.num_iterations * self.config.updates_per_step
        return notes(self.loss, updates, sampler_is_trainer=True)

    @property
    def how(self) -> Learning:
        """What `learn` needs of the configuration."""
        c = self.config
        return Learning(c.num_iterations, c.micro_batch_tokens, c.max_grad_norm, c.drop_dead_rows, c.seed)

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate after `step` steps, and write it down. Nothing without --eval_dataset."""
        if not self.eval_prompts:
            return {}
        with counting(f"evaluation at step {step}", len(self.eval_prompts)) as progress:
            figures = evaluate(
                self.eval_sampler,
                self.eval_prompts,
                self.rewards,
                num_generations=self.config.eval_generations,
                pass_at_k=sorted({1, self.config.eval_generations}),
                progress=progress,
            )
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        self.evaluations.append({"step": step, **figures})
        self.evaluations_file.write(self.evaluations[-1])
        say(
            f"evaluation at step {step}: "
            + "  ".join(f"{k.removeprefix('eval/')} {v:.3f}" for k, v in figures.items())
        )
        return figures

    def record(
        self, step: int, groups: Sequence[RolloutGroup], metrics: Mapping[str, Metric]
    ) -> dict[str, float]:
        """Write down what step `step` (counted from 1) found, evaluate and save where they are due."""
        config, row = self.config, values(metrics)
        self.state, self.finished_version = TrainState(step), self.policy.version
        if "reward" not in row and step == self.first_step + 1:
            say(
                "note: no reward function applied to any completion of this step, so nothing was learned from it"
            )
        if step == config.max_steps or (config.eval_steps and step % config.eval_steps == 0):
            row |= self.evaluate(step)
        self.metrics_file.write({"step": step, **row})
        for group in sample_of_groups(groups, config.log_completions):
            self.completions_file.write({"step": step, **group_record(group, self.rewards)})
        if config.save_steps and step % config.save_steps == 0:
            self.save()
        return row

    @contextmanager
    def recording(self, step: int, updates: Sequence[StepBatch]) -> Iterator[None]:
        """Around a step's learning: its first update's tokens before and after, for the first --record_batches steps."""
        if step >= self.config.record_batches or not updates or not updates[0].rows:
            yield
            return
        old = score_rows(self.policy, updates[0].rows, self.how)
        yield
        new = score_rows(self.policy, updates[0].rows, self.how)
        write_batch(self.output / "batches" / f"step-{step + 1}.safetensors", updates[0], old, new)

    def save(self) -> Path:
        """Write the checkpoint of the state after the last finished step."""
        path = self.output / f"checkpoint-{self.state.step}"
        save_checkpoint(path, self.state, self.policy, self.tokenizer, self.optimizer, self.config.save_dtype)
        return path

    def rescue(self) -> None:
        """After an error: keep what was trained, if the step that failed had not moved the weights yet."""
        path = self.output / f"checkpoint-{self.state.step}"
        if self.state.step and self.policy.version == self.finished_version and not path.exists():
            say(f"saved {self.save()}: the state after the last finished step")

    def write_error(self, error: BaseException) -> Path:
        """Write the full traceback to error.txt."""
        path = self.output / "error.txt"
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return path

    def finish(self) -> None:
        """Write final/ and the report, and say where everything is."""
        from .report import write_report

        save_model(self.output / "final", self.policy, self.tokenizer, self.config.save_dtype)
        page = write_report(self.output, formula=self.loss.formula)
        if len(self.evaluations) > 1:
            console.print(before_after(self.evaluations[0], self.evaluations[-1], self.config.eval_dataset))
        say(f"model: {self.output / 'final'}\nreport: {page}")

    def close(self) -> None:
        """Close the run's files."""
        for file in (self.metrics_file, self.completions_file, self.evaluations_file):
            file.close()


def sample_of_groups(groups: Sequence[RolloutGroup], count: int) -> list[RolloutGroup]:
    """At most `count` groups to write down: the best and the worst by mean reward, then the first others."""

    def mean(i: int) -> float:
        reward = groups[i].reward
        return 0.0 if reward is None or reward.isnan().all() else float(reward.nanmean())

    order = sorted(range(len(groups)), key=mean)
    picked = list(dict.fromkeys([*order[-1:], *order[:1], *range(len(groups))]))[:count]
    return [groups[i] for i in sorted(picked)]


def group_record(group: RolloutGroup, rewards: Sequence[Reward]) -> dict[str, Any]:
    """A group as a line of completions.jsonl."""

    def numbers(column: torch.Tensor | None) -> list[float | None]:
        return [] if column is None else [None if math.isnan(x) else x for x in column.tolist()]

    table = group.rewards
    return {
        "prompt": group.prompt.content,
        "source": group.prompt.source,
        "columns": {
            k: v if isinstance(v, str | int | float | bool | None) else str(v)
            for k, v in group.prompt.columns.items()
        },
        "completions": [rollout.text for rollout in group.rollouts],
        "finish_reasons": [rollout.finish_reason for rollout in group.rollouts],
        "rewards": {r.name: numbers(None if table is None else table[:, f]) for f, r in enumerate(rewards)},
        "reward": numbers(group.reward),
        "advantages": numbers(group.advantages),
    }
