"""A configuration → a run: loads the model, the data, the rewards and, to resume, a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...common.console import say
from ...config.options import TrainConfig
from ...config.yaml import to_yaml
from ...parallel import ALONE, World
from ...policy.layout import resolve_packing, resolve_sharing
from ...policy.load import load_tokenizer
from ...policy.optimizer import make_optimizer
from ...rewards import describe_rewards as recognised_rewards
from ...runs.checkpoint import TrainState, load_checkpoint
from ...runs.directory import changed_options, claim, find_checkpoint, set_aside, set_best_aside
from ...runs.jsonl import JsonLines
from ...runs.trackers import Tracker, start_trackers
from ...types import Prompt
from ..run import Run
from ..signals import StopRequest
from .data import load_prompts, make_rewards
from .loss import loss_from_config
from .models import context_of, load_models, set_threads
from .samplers import make_sample_ahead, sampler_factory

EVAL_SEED = 1_000_003  # added to the seed: evaluation draws noise of its own


def start(config: TrainConfig, world: World = ALONE, stop: StopRequest | None = None) -> Run:
    """Assemble a run, or pick one up where `resume_from_checkpoint` says. Raises ValueError naming the flag."""
    stop = StopRequest() if stop is None else stop  # it's false until a signal comes
    loss = loss_from_config(config)
    if config.scale_rewards == "group" and loss.scale_rewards == "none":
        raise ValueError(
            f"--scale_rewards group: {loss.name} is the loss that leaves advantages unscaled; leave the flag out, or "
            "use --loss_type grpo"
        )
    output = Path(config.output_dir)
    checkpoint = open_directory(config, output, world)
    policy, reference = load_models(config, checkpoint, world)
    set_threads(config, policy)
    tokenizer = load_tokenizer(str(checkpoint or config.model), config.trust_remote_code)
    prompts = load_prompts(config, config.dataset, "--dataset", tokenizer, context_of(policy))
    rewards = make_rewards(config, prompts.columns)
    say(recognised_rewards(rewards))
    longest = prompts.longest
    eval_prompts: list[Prompt] = []
    if config.eval_dataset:
        held_out = load_prompts(config, config.eval_dataset, "--eval_dataset", tokenizer, context_of(policy))
        make_rewards(config, held_out.columns)  # an error now, rather than at the first evaluation
        eval_prompts = held_out.in_order(config.eval_samples)
        longest = max(longest, held_out.longest)
    longest += config.max_completion_length
    sampler_of = sampler_factory(config, policy, tokenizer, stop.__bool__, world, longest)
    share, shares_not = resolve_sharing(config, policy, reference, longest)
    optimizer = make_optimizer(policy, config)
    state = load_checkpoint(checkpoint, policy, optimizer, prompts.at, world) if checkpoint else TrainState()
    if world.is_main:
        (output / "error.txt").unlink(missing_ok=True)  # of an earlier try
        (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    sampler = sampler_of(config.seed)
    ahead = make_sample_ahead(config, sampler, state.ahead, checkpoint, world)
    trackers = make_trackers(config, output, state.step) if world.is_main else []
    evaluations_file = JsonLines(
        output / "evaluations.jsonl", state.step if checkpoint else -1, world.is_main
    )
    return Run(
        config=config,
        loss=loss,
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        prompts=prompts,
        eval_prompts=eval_prompts,
        rewards=rewards,
        sampler=ahead or sampler,
        eval_sampler=sampler_of(config.seed + EVAL_SEED),
        ahead=ahead,
        optimizer=optimizer,
        state=replace(state, unfinished=None, ahead=()),
        output=output,
        metrics_file=JsonLines(output / "metrics.jsonl", state.step, world.is_main),
        completions_file=JsonLines(output / "completions.jsonl", state.step, world.is_main),
        evaluations_file=evaluations_file,
        evaluations=world.from_main(evaluations_file.rows() if world.is_main else None),
        scale_rewards=config.scale_rewards or loss.scale_rewards,
        packed=resolve_packing(config, policy),
        share=share,
        shares_not=shares_not,
        first_step=state.step,
        world=world,
        stop=stop,
        trackers=trackers,
        unfinished=state.unfinished,
    )


def make_trackers(config: TrainConfig, output: Path, first_step: int) -> list[Tracker]:
    """What --report_to names. Raises ValueError naming the one that isn't installed."""
    return start_trackers(
        config.report_to,
        project=config.project,
        run_name=config.run_name or output.resolve().name,
        config=vars(config),
        first_step=first_step,
        output=output,
    )


def open_directory(config: TrainConfig, output: Path, world: World) -> Path | None:
    """The main rank finds the checkpoint to resume from, if any, and claims the directory; all ranks learn of it.

    Newer checkpoints are set aside at once: should anything fail from here on, a restart takes the newest.
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
