"""Puts a run together from its configuration, or picks it up from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...common.console import say
from ...config.options import TrainConfig
from ...config.yaml import to_yaml
from ...parallel import ALONE, World
from ...policy.layout import choose_layout
from ...policy.learn import StepProgress
from ...policy.load import load_tokenizer
from ...policy.optimizer import make_optimizer
from ...rewards import describe_rewards
from ...rollouts.resample import spread_filter
from ...rollouts.step_rollouts import StepRollouts
from ...runs.checkpoint import TrainState, load_checkpoint, read_record
from ...runs.directory import changed_options, claim, find_checkpoint, set_aside, set_best_aside
from ...runs.recorder import Recorder
from ...runs.trackers import Tracker, start_trackers
from ..callbacks import Callbacks
from ..evaluation import HeldOut
from ..run import Run
from ..signals import StopRequest
from .announce import StepNotes
from .data import load_prompts, load_training_prompts, make_rewards
from .loss import loss_from_config
from .models import context_of, load_models, set_threads
from .parts import Parts, find_estimator, find_filter, find_sampler
from .samplers import make_sample_ahead, sampler_factory

EVAL_SEED = 1_000_003  # added to the seed: evaluation draws noise of its own


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
    stop, parts = stop or StopRequest(), parts or Parts()
    own_sampler = find_sampler(config, parts)
    estimator, own_filter = find_estimator(config, parts), find_filter(config, parts)
    loss = loss_from_config(config)
    if config.scale_rewards == "group" and loss.scale_rewards == "none":
        raise ValueError(
            f"--scale_rewards group: {loss.name} is the loss that leaves advantages unscaled; leave the flag out, or "
            "use --loss_type grpo"
        )
    output = Path(config.output_dir)
    checkpoint = open_directory(config, output, world)
    policy, reference = load_models(config, checkpoint, world, parts.model)
    set_threads(config, policy)
    tokenizer = parts.tokenizer or load_tokenizer(str(checkpoint or config.model), config.trust_remote_code)
    context = context_of(policy)
    prompts = load_training_prompts(config, tokenizer, context, parts.train_dataset)
    columns = prompts.columns
    rewards = make_rewards(config, columns, parts.reward_funcs)
    say(describe_rewards(rewards))
    eval_prompts, longest = [], prompts.longest
    if config.eval_dataset:
        held_out = load_prompts(
            config, config.eval_dataset, "--eval_dataset", tokenizer, context, parts.eval_dataset
        )
        make_rewards(
            config, held_out.columns, parts.reward_funcs
        )  # an error now, not at the first evaluation
        eval_prompts = held_out.in_order(config.eval_samples)
        longest = max(longest, held_out.longest)
    longest += config.max_completion_length
    make_sampler = sampler_factory(config, policy, tokenizer, stop.is_set, world, longest, own_sampler)
    layout = choose_layout(config, policy, reference, longest)
    optimizer = make_optimizer(policy, config, parts.optimizer)
    state = TrainState()
    if checkpoint:
        prompts.restore(read_record(checkpoint).get("data"))
        state = load_checkpoint(checkpoint, policy, optimizer, prompts.at, world)
    if world.is_main:
        (output / "error.txt").unlink(missing_ok=True)  # of an earlier try
        (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    sampler = make_sampler(config.seed)
    ahead = make_sample_ahead(config, sampler, state.ahead, checkpoint, world)
    trackers = make_trackers(config, output, state.step) if world.is_main else []
    recorder = Recorder.open(
        output, rewards, config.log_completions, trackers, state.step, checkpoint is not None, world
    )
    eval_sampler = make_sampler(config.seed + EVAL_SEED)
    run = Run(
        config=config,
        world=world,
        loss=loss,
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        prompts=prompts,
        rewards=rewards,
        rollouts=StepRollouts(
            sampler=sampler,
            ahead=ahead,
            prompts=prompts,
            world=world,
            pause=lambda: stop.raise_if_set(world),
            num_generations=config.num_generations,
            prompts_per_step=config.prompts_per_step,
            max_resample_times=config.max_resample_times,
            max_steps=config.max_steps,
        ),
        held_out=HeldOut(eval_prompts, eval_sampler, config.eval_generations) if eval_prompts else None,
        optimizer=optimizer,
        estimator=estimator,
        scale_rewards=config.scale_rewards or loss.scale_rewards,
        group_filter=own_filter or spread_filter([reward.weight for reward in rewards]),
        masks_refused=own_filter is not None,
        layout=layout,
        recorder=recorder,
        state=replace(state, unfinished=None, ahead=()),
        stop=stop,
        callbacks=Callbacks(parts.callbacks, world),
        notes=StepNotes(output),
    )
    return run, state.unfinished


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
            claim(output)
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
