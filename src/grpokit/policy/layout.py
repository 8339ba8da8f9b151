"""Decides how a run lays samples out in a forward, from its flags and from what its models can do."""

from __future__ import annotations

from dataclasses import dataclass

from ..batch.cuts import Sharing
from ..config.options import TrainConfig
from .architecture import obstacle
from .policy import Policy
from .reference import AdapterOff, Reference


@dataclass(frozen=True)
class LayoutChoice:
    """How a run's forwards are laid out. Example: `LayoutChoice(packed=False, share="auto", shares_not=None)`"""

    packed: bool  # micro-batches without padding
    share: Sharing  # whether prompts are computed once for all their completions
    # The reason why prompts aren't shared; None if they are, or with --share_prompts never.
    shares_not: str | None


def choose_layout(
    config: TrainConfig, policy: Policy, reference: Reference | None, longest: int
) -> LayoutChoice:
    """Chooses the layouts of a run.

    Args:
        config: its --packing and --share_prompts.
        policy: the model that is trained.
        reference: the reference model, where there is one.
        longest: tokens of the longest prompt and completion together.

    Returns:
        The choice, the same on every rank.

    Raises:
        ValueError: a layout is asked for that a model can't compute.
    """
    share, shares_not = resolve_sharing(config, policy, reference, longest)
    return LayoutChoice(resolve_packing(config, policy), share, shares_not)


def resolve_packing(config: TrainConfig, policy: Policy) -> bool:
    """Tells whether micro-batches are packed. Raises ValueError where --packing packed is given and the model can't pack."""
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
    """Tells whether completions share their prompts in a forward, and if not, why.

    Args:
        config: its --share_prompts.
        policy: the model that is trained.
        reference: the reference model, or None.
        longest: tokens of the longest prompt and completion together.

    Returns:
        The way of sharing, and the reason why prompts aren't shared: None if they are, or with --share_prompts never.

    Raises:
        ValueError: --share_prompts always is given and a model can't share them.
    """
    if config.share_prompts == "never":
        return "never", None
    others = [] if reference is None or isinstance(reference, AdapterOff) else [reference]
    for scored_by in (policy, *others):
        reason = obstacle(scored_by.model, longest) or scored_by.shares_not
        if reason is not None:
            why = f"{type(scored_by.model).__name__}: {reason}"
            if config.share_prompts == "always":
                raise ValueError(f"--share_prompts always: cannot be used with {why}; use auto or never")
            return "never", why
    return config.share_prompts, None
