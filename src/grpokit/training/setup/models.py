"""The policy and the reference of a configuration."""

from __future__ import annotations

from pathlib import Path

import torch

from ...common.console import say
from ...config.options import ModelConfig, TrainConfig
from ...parallel import World, default_device
from ...policy.load import compile_layers, load_policy
from ...policy.lora import Lora, adapted_layers
from ...policy.policy import Policy
from ...policy.reference import AdapterOff, Reference
from .loss import lora_from_config

SMALL = 1_000_000  # parameters; below, handing work to a second thread takes longer than the work


def load_models(
    config: TrainConfig, checkpoint: Path | None, world: World
) -> tuple[Policy, Reference | None]:
    """The policy, as the run began or as `checkpoint` has it, and the reference where there is a KL penalty to it.

    Of a LoRA run, it is as the run began in any case: what a checkpoint has beside that is in its trainer/.
    """
    lora = lora_from_config(config)

    def load(path: str, gradient_checkpointing: bool, lora: Lora | None = None) -> Policy:
        policy = load_policy(
            path,
            dtype=config.dtype,
            temperature=config.temperature,
            device=default_device(),
            world=world,
            shard_size=config.shard_size,
            gradient_checkpointing=gradient_checkpointing,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            lora=lora,
        )
        if config.compile:
            compile_layers(policy)
        return policy

    path = str(checkpoint) if checkpoint and lora is None else config.model
    policy = load(path, config.gradient_checkpointing, lora)
    if lora is not None:
        trained, total = (
            sum(p.numel() for p in policy.parameters() if p.requires_grad or every) for every in (False, True)
        )
        say(
            f"LoRA: {len(adapted_layers(policy.model))} modules have an adapter of rank {lora.r}; {trained:,} of {total:,} "
            f"parameters are trained ({trained / total:.2%})"
        )
    if not config.beta:
        return policy, None
    if lora is not None and not config.ref_model:
        return policy, AdapterOff(policy)
    reference = load(config.ref_model or config.model, False).requires_grad_(False)
    check_reference(policy, reference, config.ref_model or config.model)
    return policy, reference


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


def context_of(policy: Policy) -> int | None:
    """The model's longest context in tokens, where its config says."""
    return getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)


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
