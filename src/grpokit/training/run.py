"""A run between two steps: its parts, where it stands, and how it pauses, saves and ends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..batch.advantages import Estimator
from ..common.console import before_after, console, say
from ..common.text import one_line
from ..config.options import TrainConfig
from ..config.sampled import sampled_from
from ..config.yaml import to_yaml
from ..losses import Loss
from ..parallel import World
from ..policy.export import SaveFormat, save_model
from ..policy.flops import rollout_flops
from ..policy.layout import LayoutChoice
from ..policy.learn import Learning, Offender, StepProgress
from ..policy.policy import Policy
from ..policy.reference import Reference, move_reference
from ..policy.router import RouterLoss
from ..rewards import Reward
from ..rollouts.resample import GroupFilter, StepGroups
from ..rollouts.step_rollouts import PromptOrder, StepRollouts
from ..runs.checkpoint import RandomState, TrainState, prune, random_state_now, save_checkpoint
from ..runs.dumps import write_offender
from ..runs.metrics import values
from ..runs.recorder import Recorder
from ..types import Metrics, RolloutGroup
from .callbacks import Callbacks
from .clock import Clock
from .early_stop import has_stalled
from .evaluation import HeldOut, describe_evaluation, evaluate_sets
from .kl_reward import kl_metrics
from .meters import Meters
from .model_card import card_files
from .recording import recording
from .rescue import rescue
from .scoring import score_groups
from .setup.announce import StepNotes
from .setup.loss import objective_of
from .signals import StopRequest
from .teacher import Teachers


@dataclass(frozen=True)
class Step:
    """One step that is done. Example: `Step(3, groups, {"reward": 0.5, "loss": 0.01, ...})`"""

    step: int  # counted from 1
    groups: Sequence[RolloutGroup]  # all ranks' groups, with rewards and advantages
    metrics: dict[str, float]  # the step's row of metrics.jsonl


@dataclass
class Run:
    """A training run between two steps. `setup.start` makes one, and `loop.iter_steps` moves it."""

    config: TrainConfig
    world: World
    loss: Loss
    policy: Policy
    reference: Reference | None
    teachers: Teachers
    tokenizer: Any
    prompts: PromptOrder
    rewards: tuple[Reward, ...]
    rollouts: StepRollouts
    held_out: tuple[HeldOut, ...]
    optimizer: torch.optim.Optimizer
    estimator: str | Estimator
    scale_rewards: str
    group_filter: GroupFilter  # groups that it refuses are resampled
    # Whether refused groups that are still needed to fill the step are masked. They are if the filter is the user's;
    # otherwise they stay, with advantage 0.
    masks_refused: bool
    layout: LayoutChoice
    router: RouterLoss | None  # the router auxiliary loss of a mixture of experts
    recorder: Recorder
    state: TrainState
    stop: StopRequest
    callbacks: Callbacks
    notes: StepNotes
    meters: Meters
    resume_by: str = "--resume_from_checkpoint auto"  # what to tell the user
    random_state: RandomState = field(default_factory=random_state_now)  # where the present step began

    @property
    def output(self) -> Path:
        """The run's directory."""
        return self.recorder.output

    @property
    def reward_weights(self) -> list[float]:
        """One weight for each reward function."""
        return [reward.weight for reward in self.rewards]

    @property
    def advantage_settings(self) -> tuple[str, list[float], float, float | None]:
        """What `add_advantages` takes beside the estimator."""
        config = self.config
        return self.scale_rewards, self.reward_weights, config.advantage_epsilon, config.turn_discount

    @property
    def moving_reference(self) -> Policy | None:
        """The reference, where it moves with the policy (--sync_ref_model): a checkpoint then holds it."""
        moves = self.config.sync_ref_model and isinstance(self.reference, Policy)
        return self.reference if moves else None  # pyright: ignore[reportReturnType]

    @property
    def save_format(self) -> SaveFormat:
        """How the model is saved."""
        return SaveFormat(self.config.save_dtype, only_adapter=self.config.lora_save == "adapter")

    @property
    def learning(self) -> Learning:
        """The settings with which `learn` trains on a step."""
        c = self.config
        return Learning(
            c.num_iterations,
            c.micro_batch_tokens,
            c.max_grad_norm,
            c.drop_dead_rows,
            c.seed,
            packed=self.layout.packed,
            share=self.layout.share,
            router=self.router,
            sampled=sampled_from(c),
            skips_left=c.max_skipped_steps - self.state.skipped,
            world=self.world,
            pause=self.pause,
            dump=self.dump,
            observe=self.meters.token_trace and self.meters.token_trace.observe,
            work=self.meters.work,
        )

    def remaining_steps(self) -> Iterator[int]:
        """The steps that are still to be done, counted from 0. --early_stop or a dataset that is read once may end them."""
        for step in range(self.state.step, self.config.max_steps):
            if has_stalled(self.config.early_stop, self.recorder.evaluations):
                say(f"--early_stop {self.config.early_stop}: ends the run after {step} steps")
                return
            if not self.rollouts.has_prompts(step):
                say(
                    f"note: train_dataset ended after {step} steps, before the {self.config.max_steps} of max_steps"
                )
                return
            self.rollouts.begin_step(step)
            self.meters.profiler.begin_step(self, self.config.max_steps - step)
            yield step

    def step_groups(self, step: int) -> StepGroups:
        """An empty collection for the groups of step `step`, counted from 0."""
        c = self.config
        return StepGroups(
            step, c.prompts_per_step, c.max_resample_times, self.group_filter, self.masks_refused
        )

    def pause(self) -> None:
        """Raises Stopped on every rank where a signal has asked any rank to stop. All ranks call it.

        A run may stop between micro-batches, and after sampling, before rollouts are gathered.
        """
        self.stop.raise_if_set(self.world)

    def sampling_metrics(self, chosen: StepGroups, groups: Sequence[RolloutGroup]) -> Metrics:
        """What is measured of a step's groups before it is learned from."""
        stale = self.rollouts.staleness(groups, self.policy.version)
        return chosen.metrics | stale | kl_metrics(chosen.groups, self.config.beta)

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluates after `step` steps, keeps the best model, and writes the figures down. {} without --eval_dataset."""
        if not self.held_out:
            return {}
        figures = evaluate_sets(
            self.held_out, partial(score_groups, self, step), step, self.world, self.pause
        )
        earlier = [row.get("eval/reward", -math.inf) for row in self.recorder.evaluations]
        if figures.get("eval/reward", -math.inf) > max(earlier, default=math.inf):
            record = json.dumps({"step": step, "eval/reward": figures["eval/reward"]}) + "\n"
            texts = {"evaluation.json": record} | card_files(self, step, figures, is_best=True)
            save_model(self.output / "best", self.policy, self.tokenizer, self.save_format, self.world, texts)
            say(f"best so far by eval/reward: {self.output / 'best'}")
        with self.world.together():
            self.recorder.write_evaluation(step, figures)
        say(describe_evaluation(step, figures))
        self.callbacks.call("on_evaluate", step, figures)
        return figures

    def finish_step(self, step: int, progress: StepProgress, metrics: Metrics, clock: Clock) -> Step:
        """Records step `step`, counted from 1, and evaluates where that is due. The run's state moves on last.

        Args:
            step: the step's number, counted from 1.
            progress: the step.
            metrics: what was measured of it.
            clock: its wall time by phase.

        Returns:
            The step, as callbacks and `GRPOTrainer.steps` see it.
        """
        config, groups = self.config, progress.groups
        tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
        if self.meters.token_trace is not None:
            clock.seconds["tokens"] = self.meters.token_trace.seconds
        speed = clock.metrics(tokens, self.world, self._sampled_flops(groups), self.meters.peak_flops)
        row = values(metrics | speed)
        self.notes.check(row, groups)
        if step == config.max_steps or (config.eval_steps and step % config.eval_steps == 0):
            row |= self.evaluate(step)
        self.notes.advise(step, row)
        self.meters.profiler.end_step(row)
        with self.world.together():
            self.recorder.write_step(step, row, groups)
        moving = self.moving_reference
        if moving is not None and step % config.ref_model_sync_steps == 0:
            move_reference(moving, self.policy, config.ref_model_mixup_alpha)
        skipped = self.state.skipped + progress.skipped
        self.state = replace(self.state, step=step, skipped=skipped, dropped=self.rollouts.budget.dropped)
        self.random_state = random_state_now()
        return Step(step, groups, row)

    def _sampled_flops(self, groups: Sequence[RolloutGroup]) -> float:
        """Returns the FLOPs of sampling a step's groups; 0 where they were sampled elsewhere or meanwhile."""
        elsewhere = self.config.async_depth or (
            self.config.sampler != "transformers" and self.config.vllm_mode == "server"
        )
        return 0.0 if elsewhere else rollout_flops(self.meters.work.of(self.policy.model), groups)

    def save_if_due(self) -> None:
        """Writes a checkpoint every --save_steps steps."""
        if self.config.save_steps and self.state.step % self.config.save_steps == 0:
            self.save()

    def recording(self, step: int, progress: StepProgress) -> AbstractContextManager[None]:
        """Records a step's learning, as --record_batches and --log_tokens ask for."""
        return recording(self, step, progress)

    def dump(self, offender: Offender) -> Path:
        """Writes a micro-batch whose loss or gradient is not finite, for `grpokit replay`."""
        name = (
            f"step-{self.state.step + 1}-update-{offender.update}-rank-{self.world.rank}"
            f"-sample-{offender.samples[0].index}"
        )
        file = self.output / "nonfinite" / f"{name}.safetensors"
        write_offender(file, offender, self.config, self.state.step, self.policy.version)
        return file

    def save(self, progress: StepProgress | None = None, folder: Path | None = None) -> Path:
        """Writes the checkpoint of where the run stands. All ranks call it.

        Args:
            progress: the step that is under way, or None.
            folder: where to write it (None: the run's directory).

        Returns:
            The checkpoint's directory.

        Raises:
            OSError: it cannot be written (FailedOnSomeRank among several ranks).
        """
        ahead = self.rollouts.waiting() if progress is None else []
        state = replace(
            self.state,
            unfinished=progress,
            ahead=ahead,
            data=self.rollouts.data_state(self.state.step, within=progress is not None),
            # A step that is not yet under way is sampled again.
            dropped=self.state.dropped if progress is None else self.rollouts.budget.dropped,
        )
        path = (folder or self.output) / state.name
        save_checkpoint(
            path,
            state,
            self.policy,
            self.tokenizer,
            self.optimizer,
            self.save_format,
            reference=self.moving_reference,
            config=to_yaml(self.config),
            world=self.world,
            # A stop while a step samples discards its rewards. They are computed again, from the same random state.
            random_state=self.random_state if progress is None else None,
        )
        if self.world.is_main and folder is None:
            prune(self.output, self.config.save_total_limit, path)
        self.callbacks.call("on_save", self.state.step, path)
        return path

    def rescue(self, error: BaseException, progress: StepProgress | None = None) -> None:
        """Saves a checkpoint after a stop or an error (see `training/rescue.py`)."""
        rescue(self, error, progress)

    def finish(self) -> None:
        """Writes final/ and the report, and says where everything is."""
        final, evaluations = self.output / "final", self.recorder.evaluations
        if self.held_out and evaluations[-1]["step"] != self.state.step:  # a callback ended it early
            self.evaluate(self.state.step)
        figures = evaluations[-1] if self.held_out else {}
        card = card_files(self, self.state.step, figures)
        save_model(final, self.policy, self.tokenizer, self.save_format, self.world, card)
        if self.world.is_main:
            if evaluations and not (self.output / "best").exists():
                say(
                    "no evaluation was better by eval/reward than the first one: there is no "
                    f"{self.output / 'best'}"
                )
            page = self._write_report()
            if len(evaluations) > 1:
                console.print(
                    before_after(evaluations[0], evaluations[-1], " ".join(self.config.eval_dataset))
                )
            say(f"model: {final}\nreport: {page}")
        self.callbacks.call("on_train_end", self.state.step, final)

    def _write_report(self) -> str:
        """Writes the report. It only watches: an error in it is said, and ends nothing."""
        from ..runs.report import write_report

        try:
            return str(write_report(self.output, formula=objective_of(self.config, self.loss)[1]))
        except Exception as error:  # noqa: BLE001 - everything is saved, and the run has succeeded
            where = self.recorder.write_error(error)
            return f"could not be written ({type(error).__name__}: {one_line(error)}; {where}); try `grpokit report`"

    def close(self) -> None:
        """Stops sampling that is in progress, and closes the run's files."""
        try:
            self.meters.profiler.finish(self)
        finally:
            self.rollouts.close()
            self.recorder.close()
