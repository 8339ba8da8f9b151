"""A configuration → a run: loads the model, the data, the rewards and, to resume, a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoint import TrainState, load_checkpoint
from .config import EvalConfig, ModelConfig, TrainConfig
from .configured import loss_of
from .console import console, counting, figures_table, say, waiting
from .dataset_files import HELD_OUT, TRAINING, open_dataset
from .evaluate import evaluate
from .forms import packs, sharing
from .metrics import JsonLines
from .model import Policy, compile_layers, default_device, load_policy, load_tokenizer
from .optimizer import make_optimizer
from .overlay import to_yaml
from .parallel import ALONE, World
from .prompts import Prompts
from .rewards import Reward, load_rewards, score
from .rewards import recognised as recognised_rewards
from .rollouts import Sampler
from .rollouts.transformers import TransformersSampler
from .rows import read_rows, recognised
from .run import Run
from .rundir import changed_options, claim, find_checkpoint, set_aside, set_best_aside
from .signals import StopRequest
from .trackers import Tracker, start_trackers
from .types import Prompt, RolloutGroup

EVAL_SEED = 1_000_003  # added to the seed: evaluation draws noise of its own


def load_prompts(config: ModelConfig, path: str, flag: str, tokenizer: Any, context: int | None) -> Prompts:
    """A dataset's prompts, tokenized and measured against the model's context. Says what it is, and what was left out."""
    longest, reason = config.max_prompt_length, None
    if context is not None:
        room = context - config.max_completion_length
        if room < 1:
            raise ValueError(
                f"--max_completion_length {config.max_completion_length}: the model's context is {context} tokens, "
                f"which leaves no room for a prompt; use less than {context}"
            )
        if longest is None or longest > room:
            longest = room
            reason = (
                f"the {room} tokens that --max_completion_length {config.max_completion_length} leaves of "
                f"the model's context of {context}"
            )
    trains = isinstance(config, TrainConfig) and flag == "--dataset"
    split = config.eval_split if isinstance(config, TrainConfig) and not trains else config.dataset_split
    source = open_dataset(path, flag, split, TRAINING if trains else HELD_OUT)
    limit = config.max_samples if flag == "--dataset" else 0  # the other has --eval_samples
    rows, skipped = read_rows(source, config.skip_bad_rows, limit=limit)
    say(recognised(source, rows))
    prompts = Prompts(
        rows,
        tokenizer,
        max_prompt_length=longest,
        limit_reason=reason,
        long_prompts=config.long_prompts,
        seed=config.seed,
        skip_bad_rows=config.skip_bad_rows,
        skipped_rows=skipped,
        flag=flag,
        system_prompt=config.system_prompt,
    )
    if prompts.skipped:
        say(f"{path}: skipped {prompts.skipped} bad rows, the first: {prompts.skipped_rows[0]}")
    if prompts.dropped:
        say(f"{path}: dropped {prompts.dropped} prompts longer than {longest} tokens")
    if prompts.truncated:
        say(f"{path}: cut {prompts.truncated} prompts to their last {longest} tokens")
    return prompts


def check_reference(policy: Policy, reference: Policy, path: str) -> None:
    """Raise ValueError where the reference model cannot score the policy's tokens."""
    sizes = [p.model.get_output_embeddings().weight.shape[0] for p in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"--ref_model {path}: has a vocabulary of {sizes[1]}, and --model one of {sizes[0]}; they must be equal"
        )
    own, theirs = context_of(policy), context_of(reference)
    if own is not None and theirs is not None and theirs < own:
        raise ValueError(f"--ref_model {path}: has a context of {theirs} tokens, less than --model's {own}")


def make_sampler(
    config: ModelConfig, policy: Policy, tokenizer: Any, seed: int, stop: Callable[[], bool] = lambda: False
) -> TransformersSampler:
    """The sampler of a configuration."""
    return TransformersSampler(
        policy,
        tokenizer,
        seed=seed,
        max_completion_length=config.max_completion_length,
        min_completion_length=config.min_completion_length,
        rollout_batch_size=config.rollout_batch_size,
        decode=config.decode,
        share_prefill=config.share_prefill,
        stop=stop,
    )


def samplers(
    config: TrainConfig, policy: Policy, tokenizer: Any, stop: Callable[[], bool], world: World
) -> Callable[[int], Sampler]:
    """Seed → a sampler of the run's engine. Raises ValueError where --sampler vllm finds no server."""
    if config.sampler == "transformers":
        return lambda seed: make_sampler(config, policy, tokenizer, seed, stop)
    from .rollouts.vllm import VLLMSampler, Weights
    from .rollouts.vllm_server import Server

    engine = Server(config.vllm_url, config.vllm_timeout)
    weights = Weights(engine, policy, tokenizer, Path(config.output_dir) / "vllm", config.vllm_max_gap, world)
    return lambda seed: VLLMSampler(
        weights,
        seed=seed,
        max_completion_length=config.max_completion_length,
        min_completion_length=config.min_completion_length,
        stop=stop,
    )


def rewards_of(config: ModelConfig, columns: Collection[str]) -> tuple[Reward, ...]:
    """The reward functions of a configuration, checked against the dataset's columns."""
    return load_rewards(
        config.reward_funcs,
        config.reward_weights,
        answer_column=config.answer_column,
        format_pattern=config.format_pattern,
        max_completion_length=config.max_completion_length,
        soft_cache_length=config.soft_cache_length,
        repetition_n_grams=config.repetition_n_grams,
        repetition_max_penalty=config.repetition_max_penalty,
        columns=columns,
    )


def context_of(policy: Policy) -> int | None:
    """The model's longest context in tokens, where its config says."""
    return getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)


def start(config: TrainConfig, world: World = ALONE, stop: StopRequest | None = None) -> Run:
    """Assemble a run, or pick one up where `resume_from_checkpoint` says. Raises ValueError naming the flag."""
    stop = StopRequest() if stop is None else stop  # it's false until a signal comes
    loss = loss_of(config)
    if config.scale_rewards == "group" and loss.scale_rewards == "none":
        raise ValueError(
            f"--scale_rewards group: {loss.name} is the loss that leaves advantages unscaled; leave the flag out, or "
            "use --loss_type grpo"
        )
    output = Path(config.output_dir)
    checkpoint = open_directory(config, output, world)
    policy, reference = load_models(config, str(checkpoint or config.model), world)
    set_threads(config, policy)
    tokenizer = load_tokenizer(str(checkpoint or config.model))
    prompts = load_prompts(config, config.dataset, "--dataset", tokenizer, context_of(policy))
    rewards = rewards_of(config, prompts.columns)
    say(recognised_rewards(rewards))
    eval_prompts: list[Prompt] = []
    if config.eval_dataset:
        held_out = load_prompts(config, config.eval_dataset, "--eval_dataset", tokenizer, context_of(policy))
        rewards_of(config, held_out.columns)  # an error now, rather than at the first evaluation
        eval_prompts = held_out.in_order(config.eval_samples)
    sampler_of = samplers(config, policy, tokenizer, stop.__bool__, world)
    share, shares_not = sharing(config, policy, reference, prompts.longest + config.max_completion_length)
    optimizer = make_optimizer(policy, config)
    state = load_checkpoint(checkpoint, policy, optimizer, prompts.at, world) if checkpoint else TrainState()
    if world.is_main:
        (output / "error.txt").unlink(missing_ok=True)  # of an earlier try
        (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    trackers = trackers_of(config, output, state.step) if world.is_main else []
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
        sampler=sampler_of(config.seed),
        eval_sampler=sampler_of(config.seed + EVAL_SEED),
        optimizer=optimizer,
        state=replace(state, unfinished=None),
        output=output,
        metrics_file=JsonLines(output / "metrics.jsonl", state.step, world.is_main),
        completions_file=JsonLines(output / "completions.jsonl", state.step, world.is_main),
        evaluations_file=evaluations_file,
        evaluations=world.from_main(evaluations_file.rows() if world.is_main else None),
        scale_rewards=config.scale_rewards or loss.scale_rewards,
        packed=packs(config, policy),
        share=share,
        shares_not=shares_not,
        first_step=state.step,
        world=world,
        stop=stop,
        trackers=trackers,
        unfinished=state.unfinished,
    )


def trackers_of(config: TrainConfig, output: Path, first_step: int) -> list[Tracker]:
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


SMALL = 1_000_000  # parameters; below, handing work to a second thread takes longer than the work


def set_threads(config: ModelConfig, policy: Policy) -> None:
    """torch's threads on a CPU: as asked for, else one for a small model, else torch's (or torchrun's) own choice."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif policy.device.type == "cpu" and parameters < SMALL and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        say(
            f"threads: 1, fastest for a model of {parameters:,} parameters (--num_threads N for another number)"
        )


def load_models(config: TrainConfig, path: str, world: World) -> tuple[Policy, Policy | None]:
    """The policy, and the reference where there is a KL penalty to it."""

    def load(path: str, gradient_checkpointing: bool) -> Policy:
        policy = load_policy(
            path,
            dtype=config.dtype,
            temperature=config.temperature,
            device=default_device(),
            world=world,
            shard_size=config.shard_size,
            gradient_checkpointing=gradient_checkpointing,
            attn_implementation=config.attn_implementation,
        )
        if config.compile:
            compile_layers(policy)
        return policy

    policy = load(path, config.gradient_checkpointing)
    if not config.beta:
        return policy, None
    reference = load(config.ref_model or config.model, False).requires_grad_(False)
    check_reference(policy, reference, config.ref_model or config.model)
    return policy, reference


def run_evaluation(config: EvalConfig) -> dict[str, float]:
    """`grpokit eval`: load, evaluate, print a table, and write it where --output_file says."""
    n = config.num_generations
    wanted = config.pass_at_k or tuple(sorted({1, n}))
    if n < 1 or not all(1 <= k <= n for k in wanted):
        raise ValueError(
            f"--pass_at_k {' '.join(map(str, wanted))}: each k must be between 1 and --num_generations {n}"
        )
    with waiting("loading torch and the model"):
        tokenizer = load_tokenizer(config.model)
        policy = load_policy(
            config.model, dtype=config.dtype, temperature=config.temperature, device=default_device()
        )
        set_threads(config, policy)
        prompts = load_prompts(config, config.dataset, "--dataset", tokenizer, context_of(policy))
        rewards = rewards_of(config, prompts.columns)
        say(recognised_rewards(rewards))
        sampler = make_sampler(config, policy, tokenizer, config.seed)

    def completed(prompts: Sequence[Prompt], count: int, greedy: bool) -> list[RolloutGroup]:
        return score(sampler.sample(prompts, count, greedy=greedy), rewards, config.reward_timeout)

    chosen = prompts.in_order()
    with counting(f"{len(chosen)} prompts × {n}", len(chosen)) as progress:
        figures = evaluate(completed, chosen, num_generations=n, pass_at_k=wanted, progress=progress)
    console.print(figures_table(figures, f"{config.model} on {len(chosen)} prompts of {config.dataset}"))
    if config.output_file:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        Path(config.output_file).write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    return figures
