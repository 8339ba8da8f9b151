"""A configuration → a run: loads the model, the data, the rewards and, to resume, a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoint import TrainState, load_checkpoint
from .config import LOSS_OPTIONS, EvalConfig, ModelConfig, TrainConfig
from .console import console, counting, figures_table, say, waiting
from .evaluate import evaluate
from .forms import packs, sharing
from .losses import Loss, loss_options, make_loss
from .metrics import JsonLines
from .model import Policy, default_device, load_policy, load_tokenizer
from .optimizer import make_optimizer
from .overlay import to_yaml
from .parallel import ALONE, World
from .prompts import Prompts, read_rows
from .rewards import Reward, load_rewards, score
from .rollouts.transformers import TransformersSampler
from .run import Run
from .rundir import changed_options, claim, find_checkpoint, set_aside
from .signals import StopRequest
from .types import Prompt, RolloutGroup

EVAL_SEED = 1_000_003  # added to the seed: evaluation draws noise of its own


def loss_of(config: TrainConfig) -> Loss:
    """The configured loss. Raises ValueError where an option is given that it does not use."""
    options: dict[str, Any] = {name: getattr(config, name) for name in LOSS_OPTIONS}
    options["ratio_level"] = config.ratio_level or config.importance_sampling_level
    if "max_completion_length" in loss_options(config.loss_type, config.reduction):
        options["max_completion_length"] = config.max_completion_length
    kwargs = _loss_kwargs(config, options)
    try:
        return make_loss(config.loss_type, beta=config.beta, **options, **kwargs)
    except ValueError as error:
        raise ValueError(f"--{error}") from error  # its messages begin with the option's name


def _loss_kwargs(config: TrainConfig, taken: Mapping[str, Any]) -> dict[str, Any]:
    """--loss_kwargs name=value as numbers where they are numbers. Raises ValueError naming the one that isn't so."""
    found: dict[str, Any] = {}
    for item in config.loss_kwargs:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--loss_kwargs {item}: expected name=value, such as fipo_gamma=0.98")
        if name in taken:
            raise ValueError(f"--loss_kwargs {item}: has a flag of its own, --{name}")
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = text
    return found


def load_prompts(config: ModelConfig, path: str, flag: str, tokenizer: Any, context: int | None) -> Prompts:
    """A dataset's prompts, tokenized and measured against the model's context. Says what was left out."""
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
    rows, skipped = read_rows(path, config.skip_bad_rows, flag)
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


def rewards_of(config: ModelConfig, columns: Collection[str]) -> tuple[Reward, ...]:
    """The reward functions of a configuration, checked against the dataset's columns."""
    return load_rewards(
        config.reward_funcs,
        config.reward_weights,
        answer_column=config.answer_column,
        format_pattern=config.format_pattern,
        max_completion_length=config.max_completion_length,
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
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    policy, reference = load_models(config, str(checkpoint or config.model), world)
    tokenizer = load_tokenizer(str(checkpoint or config.model))
    prompts = load_prompts(config, config.dataset, "--dataset", tokenizer, context_of(policy))
    rewards = rewards_of(config, prompts.columns)
    eval_prompts: list[Prompt] = []
    if config.eval_dataset:
        held_out = load_prompts(config, config.eval_dataset, "--eval_dataset", tokenizer, context_of(policy))
        rewards_of(config, held_out.columns)  # an error now, rather than at the first evaluation
        eval_prompts = held_out.in_order(config.eval_samples)
    share, shares_not = sharing(config, policy, reference, prompts.longest + config.max_completion_length)
    optimizer = make_optimizer(policy, config)
    state = load_checkpoint(checkpoint, policy, optimizer, prompts.at, world) if checkpoint else TrainState()
    changes = changed_options(config, checkpoint, state.unfinished is not None) if checkpoint else []
    for change in changes:
        say(f"  changed since: {change}")
    if world.is_main:
        for path in set_aside(checkpoint, output) if checkpoint else []:
            say(f"  set aside: {path} (newer than what this run goes on from)")
        (output / "error.txt").unlink(missing_ok=True)  # of an earlier try
        (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
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
        sampler=make_sampler(config, policy, tokenizer, config.seed, stop.__bool__),
        eval_sampler=make_sampler(config, policy, tokenizer, config.seed + EVAL_SEED, stop.__bool__),
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
        unfinished=state.unfinished,
    )


def open_directory(config: TrainConfig, output: Path, world: World) -> Path | None:
    """The main rank finds the checkpoint to resume from, if any, and claims the directory; all ranks learn of it."""
    checkpoint: Path | None = None
    with world.together():
        if world.is_main:
            checkpoint = find_checkpoint(config, output)
            claim(output)
    found = world.from_main(str(checkpoint) if checkpoint else None)
    if found:
        say(f"resuming from {found}")
        if not Path(found).is_dir():
            raise ValueError(
                f"{found}: cannot be seen from this host; --output_dir must be on storage that all share"
            )
    elif config.resume_from_checkpoint:
        say(f"no checkpoint in {output}: starting at step 0")
    return Path(found) if found else None


def load_models(config: TrainConfig, path: str, world: World) -> tuple[Policy, Policy | None]:
    """The policy, and the reference where there is a KL penalty to it."""

    def load(path: str, gradient_checkpointing: bool) -> Policy:
        return load_policy(
            path,
            dtype=config.dtype,
            temperature=config.temperature,
            device=default_device(),
            world=world,
            shard_size=config.shard_size,
            gradient_checkpointing=gradient_checkpointing,
            attn_implementation=config.attn_implementation,
        )

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
        prompts = load_prompts(config, config.dataset, "--dataset", tokenizer, context_of(policy))
        rewards = rewards_of(config, prompts.columns)
        sampler = make_sampler(config, policy, tokenizer, config.seed)

    def completed(prompts: Sequence[Prompt], count: int, greedy: bool) -> list[RolloutGroup]:
        return score(sampler.sample(prompts, count, greedy=greedy), rewards)

    chosen = prompts.in_order(config.max_samples or len(prompts))
    with counting(f"{len(chosen)} prompts × {n}", len(chosen)) as progress:
        figures = evaluate(completed, chosen, num_generations=n, pass_at_k=wanted, progress=progress)
    console.print(figures_table(figures, f"{config.model} on {len(chosen)} prompts of {config.dataset}"))
    if config.output_file:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        Path(config.output_file).write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    return figures
