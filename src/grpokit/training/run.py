"""A run between two steps: everything that the loop moves, and what it leaves in its directory."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..batch.cuts import Sharing
from ..common.console import before_after, console, counting, say
from ..config.options import TrainConfig
from ..config.yaml import to_yaml
from ..data.prompts import Prompts
from ..losses import Loss
from ..losses.lint import correction_note, notes
from ..parallel import FailedOnSomeRank, World
from ..policy.export import SaveFormat, save_model
from ..policy.learn import Learning, NonFiniteError, Offender, StepProgress
from ..policy.learn import score as score_samples
from ..policy.policy import Policy
from ..policy.reference import Reference
from ..rewards import Reward, score
from ..rollouts.ahead import SampleAhead
from ..rollouts.resample import first_position
from ..rollouts.sampler import Sampler, SamplingStopped
from ..runs.batches import write_batch
from ..runs.checkpoint import RandomState, TrainState, prune, random_state_now, save_checkpoint
from ..runs.completions import group_record, sample_of_groups
from ..runs.dumps import write_offender
from ..runs.jsonl import JsonLines
from ..runs.metrics import values
from ..runs.tensors import groups_from_tensors, groups_to_tensors
from ..runs.trackers import Tracker
from ..types import Metric, Metrics, Prompt, RolloutGroup
from .evaluation import evaluate
from .measure import Clock, staleness
from .signals import Stopped, StopRequest

STEPS_WITHOUT_SIGNAL = 5  # steps without anything to learn from, before the run says so


@dataclass
class Run:
    """A training run between two steps. `assemble.start` makes one; `loop.train` moves it."""

    config: TrainConfig
    loss: Loss
    policy: Policy
    reference: Reference | None
    tokenizer: Any
    prompts: Prompts
    eval_prompts: list[Prompt]
    rewards: tuple[Reward, ...]
    sampler: Sampler
    eval_sampler: Sampler
    ahead: SampleAhead | None  # the sampler, where it samples a step ahead
    optimizer: torch.optim.Optimizer
    state: TrainState
    output: Path
    metrics_file: JsonLines
    completions_file: JsonLines
    evaluations_file: JsonLines
    evaluations: list[dict[str, Any]]  # one for each evaluation, the first before any step
    scale_rewards: str
    packed: bool  # micro-batches without padding
    share: Sharing  # prompts once for all their completions
    shares_not: str | None  # why they are not, where that wasn't asked for
    first_step: int  # steps done when this process began
    world: World
    stop: StopRequest
    trackers: list[Tracker] = field(default_factory=list)
    unfinished: StepProgress | None = None  # the step that is under way
    random_state: RandomState = field(default_factory=random_state_now)  # where the present step began
    steps_without_signal: float = 0  # steps since this process began, until one had something to learn from

    @property
    def reward_weights(self) -> list[float]:
        """One for each reward function."""
        return [reward.weight for reward in self.rewards]

    @property
    def save_format(self) -> SaveFormat:
        """How the model is saved."""
        return SaveFormat(self.config.save_dtype, only_adapter=self.config.lora_save == "adapter")

    @property
    def notes(self) -> list[str]:
        """What of the configuration would silently not act."""
        updates = self.config.num_iterations * self.config.updates_per_step
        found = notes(self.loss, updates, sampler_is_trainer=self.config.sampler == "transformers")
        found += filter(
            None, [correction_note(self.loss, self.config.async_depth, self.config.correction_mode)]
        )
        if self.shares_not is not None:
            found.append(f"each completion's forward computes its prompt again: {self.shares_not}")
        return found

    @property
    def how(self) -> Learning:
        """What `learn` needs of the configuration and of the run."""
        c = self.config
        return Learning(
            c.num_iterations,
            c.micro_batch_tokens,
            c.max_grad_norm,
            c.drop_dead_rows,
            c.seed,
            packed=self.packed,
            share=self.share,
            skips_left=c.max_skipped_steps - self.state.skipped,
            world=self.world,
            pause=self.pause,
            dump=self.dump,
        )

    def pause(self) -> None:
        """Where a run may stop: between micro-batches, and before what was sampled is gathered. All ranks call it.

        Raises Stopped on every rank where a signal has asked any of them.
        """
        signum = self.world.largest(self.stop.signum)
        if signum:
            raise Stopped(signum)

    def sample(
        self, sampler: Sampler, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """This rank's share of the prompts with completions. Raises Stopped as `pause` does."""
        try:
            groups = sampler.sample(self.world.share(prompts), num_generations, greedy=greedy)
        except SamplingStopped:
            groups = []
        self.pause()
        return groups

    def score(self, groups: Sequence[RolloutGroup], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """Rewards for this rank's groups, and then the groups of all ranks, in the order of `prompts`.

        An error in a reward function is everybody's, so that what was trained can still be saved together.
        """
        with self.world.together():
            scored = score(groups, self.rewards, self.config.reward_timeout)
        at = {prompt.position: prompt for prompt in prompts}
        return self.gathered(scored, at.__getitem__)

    def gathered(
        self, groups: Sequence[RolloutGroup], prompt_at: Callable[[int], Prompt]
    ) -> list[RolloutGroup]:
        """The groups of all ranks, from each rank's; `prompt_at` finds a prompt by its position."""
        if self.world.size == 1:
            return list(groups)
        parts = self.world.gather_tensors(groups_to_tensors(groups))
        return [group for part in parts for group in groups_from_tensors(part, prompt_at)]

    def complete(self, prompts: Sequence[Prompt], clock: Clock) -> list[RolloutGroup]:
        """The scored groups of a step's prompts."""
        with clock("rollout"):
            groups = self.sample(self.sampler, prompts, self.config.num_generations)
        if self.config.max_resample_times == 0:  # else the step may need the engine once more
            self.sample_ahead()
        with clock("reward"):
            return self.score(groups, prompts)

    def sample_ahead(self) -> None:
        """With --async_depth 1: begin the next step's rollouts, if there is one and they aren't begun. All ranks call it."""
        config, following = self.config, self.state.step + 1
        if self.ahead is not None and following < config.max_steps:
            size = config.prompts_per_step
            prompts = self.prompts.take(first_position(following, size, config.max_resample_times), size)
            self.ahead.begin(self.world.share(prompts), config.num_generations)

    def staleness(self, groups: Sequence[RolloutGroup]) -> Metrics:
        """With --async_depth 1: how old a step's completions are at its start."""
        return {} if self.ahead is None else staleness(groups, self.policy.version)

    def sync(self, clock: Clock) -> None:
        """The sampler gets the new weights, after what it samples ahead with the old ones."""
        if self.ahead is not None:
            with clock("rollout"):
                self.ahead.wait()
        with clock("sync"):
            self.sampler.sync()

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate after `step` steps, and write it down. Nothing without --eval_dataset."""
        if not self.eval_prompts:
            return {}

        def completed(prompts: Sequence[Prompt], count: int, greedy: bool) -> list[RolloutGroup]:
            return self.score(self.sample(self.eval_sampler, prompts, count, greedy=greedy), prompts)

        with counting(f"evaluation at step {step}", len(self.eval_prompts)) as progress:
            figures = evaluate(
                completed,
                self.eval_prompts,
                num_generations=self.config.eval_generations,
                pass_at_k=sorted({1, self.config.eval_generations}),
                progress=progress,
            )
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        best = max((row.get("eval/reward", -math.inf) for row in self.evaluations), default=math.inf)
        if figures.get("eval/reward", -math.inf) > best:
            save_model(self.output / "best", self.policy, self.tokenizer, self.save_format, self.world)
            if self.world.is_main:
                record = {"step": step, "eval/reward": figures["eval/reward"]}
                (self.output / "best" / "evaluation.json").write_text(
                    json.dumps(record) + "\n", encoding="utf-8"
                )
            say(f"best so far by eval/reward: {self.output / 'best'}")
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
        if "reward" not in row and step == self.first_step + 1:
            say(
                "note: no reward function applied to any completion of this step, so nothing was learned from it"
            )
        self.steps_without_signal = (
            self.steps_without_signal + 1 if row.get("frac_reward_zero_std") == 1 else -math.inf
        )
        if self.steps_without_signal == STEPS_WITHOUT_SIGNAL:
            say(
                f"note: in none of {STEPS_WITHOUT_SIGNAL} steps had any group rewards that differ, so nothing was learned; "
                f"{self.output}/completions.jsonl has completions and their rewards"
            )
        if step == config.max_steps or (config.eval_steps and step % config.eval_steps == 0):
            row |= self.evaluate(step)
        self.metrics_file.write({"step": step, **row})
        shown = [group_record(g, self.rewards) for g in sample_of_groups(groups, config.log_completions)]
        for group in shown:
            self.completions_file.write({"step": step, **group})
        for tracker in self.trackers:
            tracker.log(step, row, shown)
        skipped = 0 if self.unfinished is None else self.unfinished.skipped
        self.state, self.unfinished = TrainState(step, self.state.skipped + skipped), None
        self.random_state = random_state_now()
        if config.save_steps and step % config.save_steps == 0:
            self.save()
        return row

    @contextmanager
    def recording(self, step: int, progress: StepProgress) -> Iterator[None]:
        """Around a step's learning: its first update's tokens before and after, for the first --record_batches steps."""
        wanted = step < self.config.record_batches
        if wanted and progress.done:
            say(f"note: the batch of step {step + 1} is not recorded: it was under way when the run stopped")
        if not wanted or progress.done or not progress.updates[0].samples:
            yield
            return
        samples = progress.updates[0].samples
        old = score_samples(self.policy, samples, self.how)
        yield
        new = score_samples(self.policy, samples, self.how)
        if self.world.is_main:
            write_batch(self.output / "batches" / f"step-{step + 1}.safetensors", samples, old, new)

    def dump(self, offender: Offender) -> Path:
        """Write a micro-batch whose loss or gradient is not finite, for `grpokit replay`."""
        done = 0 if self.unfinished is None else self.unfinished.done
        name = f"step-{self.state.step + 1}-update-{done + 1}-rank-{self.world.rank}-rows-{offender.samples[0].index}"
        file = self.output / "nonfinite" / f"{name}.safetensors"
        write_offender(file, offender, self.config, self.state.step, self.policy.version)
        return file

    def save(self) -> Path:
        """Write the checkpoint of where the run stands. All ranks call it."""
        ahead: Sequence[RolloutGroup] = ()
        if self.ahead is not None and self.ahead.ready is not None and self.unfinished is None:
            ahead = self.gathered(self.ahead.ready, self.prompts.at)
        state = replace(self.state, unfinished=self.unfinished, ahead=ahead)
        path = self.output / state.name
        save_checkpoint(
            path,
            state,
            self.policy,
            self.tokenizer,
            self.optimizer,
            self.save_format,
            config=to_yaml(self.config),
            world=self.world,
            # Rewards that were drawn before a stop in a step's sampling are drawn again.
            random_state=self.random_state if self.unfinished is None else None,
        )
        if self.world.is_main:
            prune(self.output, self.config.save_total_limit, path)
        return path

    def rescue(self, error: BaseException) -> None:
        """After a stop or an error: keep what was trained.

        Not where an optimizer step was under way, and of several ranks only where all of them are here.
        """
        alone = self.world.size == 1 and isinstance(error, Exception)
        torn = self.unfinished is not None and self.unfinished.torn
        begun = self.state.step > 0 or self.unfinished is not None
        name = replace(self.state, unfinished=self.unfinished).name
        if begun and not torn and (alone or isinstance(error, Stopped | NonFiniteError | FailedOnSomeRank)):
            try:
                if not (self.output / name).exists():
                    self.save()
            except OSError as cannot:  # a full disk, say, which may be why we are here
                say(f"no checkpoint of this moment: {cannot}")
                return
            say(f"saved {self.output / name}; continue with --resume_from_checkpoint auto")

    def write_error(self, error: BaseException) -> str:
        """Write the full traceback to error.txt, and say where it is."""
        path = self.output / "error.txt"
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError as cannot:
            return f"the full traceback could not be written to {path}: {cannot.strerror}"
        return f"the full traceback is in {path}"

    def finish(self) -> None:
        """Write final/ and the report, and say where everything is."""
        from ..runs.report import write_report

        final = self.output / "final"
        save_model(final, self.policy, self.tokenizer, self.save_format, self.world)
        if not self.world.is_main:
            return
        if self.evaluations and not (self.output / "best").exists():
            say(
                f"no evaluation was better by eval/reward than the first one: there is no {self.output / 'best'}"
            )
        page = write_report(self.output, formula=self.loss.formula)
        if len(self.evaluations) > 1:
            console.print(before_after(self.evaluations[0], self.evaluations[-1], self.config.eval_dataset))
        say(f"model: {self.output / 'final'}\nreport: {page}")

    def close(self) -> None:
        """End what is under way, and close the run's files."""
        if self.ahead is not None:
            self.ahead.close()
        for file in (self.metrics_file, self.completions_file, self.evaluations_file):
            file.close()
        for tracker in self.trackers:
            tracker.close()
