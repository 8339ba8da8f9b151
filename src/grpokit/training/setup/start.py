"""Puts a run together from its configuration, or picks it up from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch.optim import Optimizer

from ...batch.advantages import Estimator, has_signal
from ...batch.estimators import ESTIMATORS
from ...common.console import say
from ...common.writing import write_text
from ...config.options import TrainConfig
from ...config.sampled import for_evaluation
from ...config.yaml import to_yaml
from ...parallel import ALONE, World
from ...policy.layout import choose_layout
from ...policy.learn import StepProgress
from ...policy.optimizer import make_optimizer
from ...policy.policy import Policy
from ...policy.probes import find_router_loss
from ...policy.reference import Reference
from ...rewards import Reward
from ...rollouts import Sampler
from ...rollouts.dropped import ErrorBudget
from ...rollouts.resample import GroupFilter
from ...rollouts.step_rollouts import PromptOrder, StepRollouts
from ...runs.advice import Adviser
from ...runs.checkpoint import TrainState, load_checkpoint, read_record
from ...runs.directory import (
    changed_options,
    claim,
    find_checkpoint,
    moved_options,
    set_aside,
    set_best_aside,
)
from ...runs.recorder import Recorder
from ...runs.sources import digests
from ...runs.trackers import Tracker, start_trackers
from ..callbacks import Callbacks
from ..memory import resident_memory
from ..meters import make_meters
from ..run import Run
from ..signals import StopRequest
from ..teacher import load_teachers
from .announce import StepNotes
from .data import load_data, longest_row
from .environments import with_episodes
from .form import find_tokenizer
from .gate import check_run_models, check_tokens
from .held_out import with_sampler
from .loss import checked_loss
from .models import find_context, load_models, set_threads
from .order import check_length, with_order
from .parts import Parts, find_estimator, find_filter, find_sampler
from .prompts import PromptSource
from .samplers import EVAL_SEED, make_sample_ahead, sampler_factory


def start(
    config: TrainConfig,
    world: World = ALONE,
    stop: StopRequest | None = None,
    parts: Parts | None = None,
) -> tuple[Run, StepProgress | None]:
    """Puts a run together, or picks one up where --resume_from_checkpoint says.

    Args:
        config: the run's configuration, checked.
        world: the ranks.
        stop: asked between micro-batches whether to stop (None: never).
        parts: objects in the place of names, from Python.

    Returns:
        The run, and the step that was under way when its checkpoint was written, if one was.

    Raises:
        ValueError: naming the option that cannot work.
    """
    resume_by = "--resume_from_checkpoint auto" if parts is None else "train(resume_from_checkpoint=True)"
    stop, parts = stop or StopRequest(), parts or Parts()
    own_sampler = find_sampler(config, parts)
    estimator, own_filter = find_estimator(config, parts), find_filter(config, parts)
    loss, output = checked_loss(config), Path(config.output_dir)
    checkpoint = open_directory(config, output, world)
    context = find_context(config, checkpoint, parts.model)
    tokenizer = find_tokenizer(config, parts, str(checkpoint or config.model))
    data = load_data(config, tokenizer, context, parts)
    config, data = with_order(config, data, parts, world)
    before = resident_memory()
    policy, reference = load_models(config, checkpoint, world, parts.model)
    set_threads(config, policy)
    longest = longest_row(data, config, policy, world)
    tokenizer = check_tokens(
        policy, tokenizer, data.prompts, [p for each in data.held_out for p in each.prompts]
    )
    check_run_models(config, policy, reference, tokenizer, longest, world)
    make_sampler = sampler_factory(config, policy, tokenizer, stop.is_set, world, longest, own_sampler)
    make_sampler = with_episodes(data.environments, policy, tokenizer, make_sampler, world)
    optimizer = make_optimizer(policy, config, parts.optimizer)
    state = restore(config, checkpoint, policy, reference, optimizer, data.prompts, world)
    sampler = make_sampler(config.seed, config)
    rollouts = make_rollouts(config, sampler, data.prompts, state, checkpoint, world)
    eval_sampler = make_sampler(config.seed + EVAL_SEED, for_evaluation(config))
    run = Run(
        config=config,
        world=world,
        loss=loss,
        policy=policy,
        reference=reference,
        teachers=load_teachers(config, policy, tokenizer, longest, world),
        tokenizer=tokenizer,
        prompts=data.prompts,
        rewards=data.rewards,
        rollouts=rollouts,
        held_out=with_sampler(data.held_out, eval_sampler, config.eval_generations),
        optimizer=optimizer,
        estimator=estimator,
        scale_rewards=config.scale_rewards or loss.scale_rewards,
        group_filter=own_filter or keeps_signal(config, estimator, data.rewards),
        masks_refused=own_filter is not None,
        layout=choose_layout(config, policy, reference, longest),
        router=find_router_loss(policy, config.router_aux_loss_coef),
        recorder=open_recorder(config, output, data.rewards, state.step, checkpoint is not None, world),
        state=replace(state, unfinished=None, ahead=(), sources={**state.sources, **digests(config)}),
        stop=stop,
        callbacks=Callbacks(parts.callbacks, world),
        notes=StepNotes(output, Adviser(vars(config))),
        meters=make_meters(config, policy, loss, tokenizer, before, state.step, world.is_main),
        resume_by=resume_by,
    )
    begin(run, own_sampler is not None)
    return run, state.unfinished


def begin(run: Run, has_own_sampler: bool) -> None:
    """Prepares a run for its first step. Raises ValueError where the data's place can't be written to a checkpoint."""
    run.notes.adviser.start(run.recorder.written_steps(), run.recorder.evaluations)
    run.rollouts.pause = run.pause
    run.rollouts.data_state(run.state.step)  # raises now, not at the first checkpoint
    if has_own_sampler:
        run.rollouts.sampler.sync()  # a resumed run's weights are not the model directory's


def restore(
    config: TrainConfig,
    checkpoint: Path | None,
    policy: Policy,
    reference: Reference | None,
    optimizer: Optimizer,
    prompts: PromptSource,
    world: World,
) -> TrainState:
    """Restores what a checkpoint holds, and returns how far the run had come; the beginning without a checkpoint.

    Args:
        config: the run's configuration.
        checkpoint: the checkpoint, or None.
        policy: the model.
        reference: the reference model; restored only if it moves.
        optimizer: the optimizer.
        prompts: the prompt order.
        world: the ranks.

    Returns:
        The state.
    """
    if checkpoint is None:
        return TrainState()
    prompts.restore(read_record(checkpoint).get("data"))
    moving = reference if config.sync_ref_model and isinstance(reference, Policy) else None
    state = load_checkpoint(checkpoint, policy, optimizer, prompts.at, world, moving)
    check_length(config, state)
    return state


def keeps_signal(config: TrainConfig, estimator: str | Estimator, rewards: tuple[Reward, ...]) -> GroupFilter:
    """Returns the filter of dynamic sampling: whether the run's estimator learns anything from a group."""
    weights = [reward.weight for reward in rewards]
    return partial(has_signal, estimator=estimator, weights=weights, turn_discount=config.turn_discount)


def make_rollouts(
    config: TrainConfig,
    sampler: Sampler,
    prompts: PromptOrder,
    state: TrainState,
    checkpoint: Path | None,
    world: World,
) -> StepRollouts:
    """Makes the engine that samples a run's steps.

    Args:
        config: the run's configuration.
        sampler: the engine, whose noise has the run's seed.
        prompts: the prompt order.
        state: where the run stands; it may hold rollouts of the next step.
        checkpoint: the checkpoint that it was read from, if any.
        world: the ranks.

    Returns:
        The engine on all ranks. The run gives it its own `pause`.
    """
    budget = getattr(sampler, "budget", None) or ErrorBudget()
    budget.dropped = state.dropped
    row = ESTIMATORS.get(config.advantage_estimator)
    return StepRollouts(
        sampler=sampler,
        ahead=make_sample_ahead(config, sampler, state.ahead, checkpoint, world),
        prompts=prompts,
        world=world,
        pause=lambda: None,
        num_generations=config.num_generations,
        prompts_per_step=config.prompts_per_step,
        max_resample_times=config.max_resample_times,
        max_steps=config.max_steps,
        budget=budget,
        needs_greedy=row is not None and row.needs_greedy,
    )


def open_recorder(
    config: TrainConfig,
    output: Path,
    rewards: tuple[Reward, ...],
    step: int,
    resumed: bool,
    world: World,
) -> Recorder:
    """Writes config.yaml and opens the run's files and trackers. Takes what `Recorder.open` takes.

    Args:
        config: the run's configuration.
        output: the run's directory.
        rewards: the reward functions.
        step: steps done so far.
        resumed: whether the run continues from a checkpoint.
        world: the ranks.

    Returns:
        The recorder.
    """
    if world.is_main:
        (output / "error.txt").unlink(missing_ok=True)  # an earlier try's
        write_text(output / "config.yaml", to_yaml(config))
    trackers = make_trackers(config, output, step) if world.is_main else []
    return Recorder.open(output, rewards, config.log_completions, trackers, step, resumed, world)


def make_trackers(config: TrainConfig, output: Path, first_step: int) -> list[Tracker]:
    """Starts the trackers of --report_to. Raises ValueError naming one that isn't installed."""
    return start_trackers(
        config.report_to,
        project=config.project,
        run_name=config.run_name or output.resolve().name,
        config=vars(config),
        first_step=first_step,
        output=output,
    )


def open_directory(config: TrainConfig, output: Path, world: World) -> Path | None:
    """Finds the checkpoint to resume from, if any, and claims the run's directory. The main rank decides for all.

    Newer checkpoints are set aside at once: should anything fail from here on, a restart takes the newest that is left.
    """
    checkpoint: Path | None = None
    said: list[str] = []
    with world.together():
        if world.is_main:
            checkpoint = find_checkpoint(config, output)
            if checkpoint:
                said = [f"changed since: {change}" for change in changed_options(config, checkpoint)]
                said += [f"moved since: {move}" for move in moved_options(config, checkpoint)]
            claim(output)
            if checkpoint and (output / "final").is_dir():
                said.append(f"the run had ended; its steps after {checkpoint.name} are trained again")
            for path in set_aside(checkpoint, output) if checkpoint else set_best_aside(output, -1):
                said.append(f"set aside: {path} (newer than what this run goes on from)")
    found = world.from_main(str(checkpoint) if checkpoint else None)
    if found:
        say("\n  ".join([f"resuming from {found}", *said]))
        if not Path(found).is_dir():
            raise ValueError(
                f"{found}: cannot be seen from this host; --output_dir must be on storage that all share"
            )
    elif config.resume_from_checkpoint:
        say(f"no checkpoint in {output}: starting at step 0")
    return Path(found) if found else None
