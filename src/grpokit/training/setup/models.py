"""Loads the policy and the reference of a configuration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...parallel import ALONE, World, default_device
from ...policy.load import compile_layers, context_length, load_policy, read_context
from ...policy.lora import Lora, adapted_layers, saved_modules
from ...policy.policy import Policy
from ...policy.reference import AdapterOff, Reference
from .loss import lora_from_config

SMALL = 1_000_000  # parameters; below, handing work to a second thread takes longer than the work


def load_configured(
    source: Any,
    config: ModelConfig,
    world: World = ALONE,
    lora: Lora | None = None,
    trains: bool = False,
    flag: str = "--model",
) -> Policy:
    """Loads one model with a configuration's options.

    Args:
        source: a directory, a model of the Hub, or a loaded PreTrainedModel.
        config: dtype, temperature, attention and, for training, sharding.
        world: the ranks.
        lora: the adapter to train.
        trains: whether the model is trained; --gradient_checkpointing applies only then.
        flag: the option that named the model, for messages.

    Returns:
        The policy.
    """
    training = config if isinstance(config, TrainConfig) else TrainConfig()
    policy = load_policy(
        source,
        dtype=config.dtype,
        temperature=config.temperature,
        device=default_device(),
        world=world,
        shard_size=training.shard_size,
        gradient_checkpointing=training.gradient_checkpointing and trains,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        lora=lora,
        frozen=(training.freeze_parameters, training.trainable_parameters) if trains else ((), ()),
        flag=flag,
        saves=trains and training.lora_save == "merged",
    )
    if training.compile:
        compile_layers(policy)
    return policy


def load_models(
    config: TrainConfig, checkpoint: Path | None, world: World, model: Any = None
) -> tuple[Policy, Reference | None]:
    """Loads the policy, and the reference where there is a KL penalty to it.

    With LoRA, the base is always loaded from `--model`; the checkpoint's adapter is restored later, from its `trainer/`
    directory.

    Args:
        config: the run's configuration.
        checkpoint: the checkpoint to resume from, or None.
        world: the ranks.
        model: a loaded PreTrainedModel in the place of --model, or None.

    Returns:
        The policy, and the reference or None.
    """
    initial = config.model if model is None else model
    lora = lora_from_config(config, None if model is None else model.config._name_or_path)
    needs_copy = model is not None and config.beta and lora is None and not config.ref_model
    untrained = copy.deepcopy(model) if needs_copy else initial
    # A model from Python is trained in place: `load_checkpoint` gives it the checkpoint's weights.
    source = str(checkpoint) if checkpoint and lora is None and model is None else initial
    policy = load_configured(source, config, world, lora, trains=True)
    announce_trained(policy)
    if not config.beta:
        return policy, None
    if lora is not None and not config.ref_model:
        return policy, AdapterOff(policy)
    reference = load_configured(
        config.ref_model or untrained, config, world, flag="--ref_model" if config.ref_model else "--model"
    ).requires_grad_(False)
    check_reference(policy, reference, config.ref_model or config.model)
    if config.sync_ref_model:
        check_moving(policy, reference, config.ref_model or config.model)
    return policy, reference


def announce_trained(policy: Policy) -> None:
    """Says how many parameters are trained, where it isn't all of them."""
    trained, total = (
        sum(p.numel() for p in policy.parameters() if p.requires_grad or every) for every in (False, True)
    )
    share = f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})"
    if policy.lora is not None:
        modules, whole = len(adapted_layers(policy.model)), len(saved_modules(policy.model))
        also = f", {whole} {'is' if whole == 1 else 'are'} trained whole" if whole else ""
        say(f"LoRA: {modules} modules have an adapter of rank {policy.lora.r}{also}; {share}")
    elif trained < total:
        say(f"frozen: {total - trained:,} parameters; {share}")


def check_reference(policy: Policy, reference: Policy, path: str, flag: str = "--ref_model") -> None:
    """Checks that a reference model, or a teacher, can score the policy's tokens.

    Args:
        policy: the policy.
        reference: the model that is to score.
        path: where it was loaded from.
        flag: the option that named it.

    Raises:
        ValueError: it has another vocabulary or a shorter context. The message names the flag.
    """
    sizes = [p.model.get_output_embeddings().weight.shape[0] for p in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{flag} {path}: has a vocabulary of {sizes[1]}, and --model one of {sizes[0]}; they must be equal"
        )
    own, theirs = context_of(policy), context_of(reference)
    if own is not None and theirs is not None and theirs < own:
        raise ValueError(f"{flag} {path}: has a context of {theirs} tokens, less than --model's {own}")


def check_moving(policy: Policy, reference: Policy, path: str) -> None:
    """Raises ValueError where the reference has other parameters than the policy, so that it can't move towards it."""
    ours, theirs = ({n: tuple(p.shape) for n, p in m.model.named_parameters()} for m in (policy, reference))
    other = next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), None)
    if other is not None:
        raise ValueError(
            f"--sync_ref_model: {other} is {ours.get(other, 'missing')} in the policy and {theirs.get(other, 'missing')} in "
            f"the reference {path}; use a reference of the same architecture"
        )


def context_of(policy: Policy) -> int | None:
    """The model's longest context in tokens, or None where its config doesn't say."""
    return context_length(policy.model.config)


def find_context(config: ModelConfig, checkpoint: Path | None = None, model: Any = None) -> int | None:
    """Finds a model's longest context before its weights are loaded, so that the data can be checked first.

    Args:
        config: the configuration.
        checkpoint: the checkpoint to resume from, or None. With LoRA, the base is --model's all the same.
        model: a loaded PreTrainedModel in the place of --model, or None.
    """
    if model is not None:
        return context_length(model.config)
    whole = checkpoint is not None and not getattr(config, "lora_r", 0)
    return read_context(
        str(checkpoint) if whole else config.model, trust_remote_code=config.trust_remote_code
    )


def prompt_limit(config: ModelConfig, context: int | None) -> tuple[int | None, str | None]:
    """The longest prompt in tokens (None: unknown), and why, where it isn't --max_prompt_length itself."""
    longest = config.max_prompt_length
    if context is None:
        return longest, None
    room = context - config.max_completion_length
    if room < 1:
        raise ValueError(
            f"--max_completion_length {config.max_completion_length}: the model's context is {context} tokens, "
            f"which leaves no room for a prompt; use less than {context}"
        )
    if longest is not None and longest <= room:
        return longest, None
    return room, (
        f"the {room} tokens that --max_completion_length {config.max_completion_length} leaves of "
        f"the model's context of {context}"
    )


def set_threads(config: ModelConfig, policy: Policy) -> None:
    """Sets torch's threads on a CPU: as asked for, else one for a small model, else torch's (or torchrun's) own choice."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif policy.device.type == "cpu" and parameters < SMALL and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        say(
            f"threads: 1, fastest for a model of {parameters:,} parameters (--num_threads N for another number)"
        )
