"""Chooses how samples are laid out in a forward, from the run's flags and what its models can do."""

from __future__ import annotations

from ..batch.cuts import Sharing
from ..config.options import TrainConfig
from .architecture import obstacle
from .policy import Policy
from .reference import AdapterOff, Reference


def resolve_packing(config: TrainConfig, policy: Policy) -> bool:
    """Decides whether micro-batches are packed.

    Raises:
        ValueError: `--packing packed` was asked for and the model cannot do it.
    """
    if config.packing == "packed" and not policy.packs:
        raise ValueError(
            f"--packing packed: {type(policy.model).__name__} does not keep packed samples apart with --attn_implementation "
            f"{policy.model.config._attn_implementation}; use padded"
        )
    varlen = policy.model.config._attn_implementation.startswith(("flash", "flex"))
    return policy.packs and (config.packing == "packed" or (config.packing == "auto" and varlen))


def resolve_sharing(
    config: TrainConfig, policy: Policy, reference: Reference | None, longest: int
) -> tuple[Sharing, str | None]:
    """Decides whether completions share their prompts.

    Args:
        config: the run's options.
        policy: the policy.
        reference: the reference, which shares them too; or None.
        longest: the most tokens of a sequence, prompt included.

    Returns:
        How prompts are shared, and the reason if they are not.

    Raises:
        ValueError: `--share_prompts always` was asked for and a model cannot do it.
    """
    if config.share_prompts == "never":
        return "never", None
    others = [] if reference is None or isinstance(reference, AdapterOff) else [reference]
    for of in (policy, *others):
        reason = obstacle(of.model, longest) or of.shares_not
        if reason is not None:
            why = f"{type(of.model).__name__}: {reason}"
            if config.share_prompts == "always":
                raise ValueError(f"--share_prompts always: cannot be for {why}; use auto or never")
            return "never", why
    return config.share_prompts, None
