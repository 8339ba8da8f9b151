"""Tests what a loaded model can do, before training relies on it."""

from __future__ import annotations

from typing import Any

import torch

from ..batch.collate import collate
from ..common.console import say
from ..common.text import first_line
from ..parallel import unsharded
from ..types import Layout, Sample
from .architecture import backbone, head, obstacle, run_backbone
from .lora import adapted_layers
from .policy import Policy
from .router import Balance, RouterLoss, expert_use

CLOSE = 1e-3  # relative gap to a model's own auxiliary loss that rounding explains


@torch.no_grad()
def probe_layouts(policy: Policy) -> tuple[bool, str | None]:
    """Tests the layouts: log-probs must equal those of padded samples.

    Returns:
        True if samples may be packed, and the reason why prompts may not be shared (None: they may).
    """
    vocabulary = policy.model.config.get_text_config().vocab_size
    samples = [_probe_sample(index, group, vocabulary) for index, group in enumerate((1, 0, 1, 0))]
    # FSDP2 requires a forward of the root before one of its parts. This is it; probe_head calls parts.
    want = policy(collate(samples, "padded", policy.device))[0].logps

    def gap(layout: Layout) -> float:
        return float((want - policy(collate(samples, layout, policy.device))[0].logps).abs().max())

    try:
        packs = gap("packed") < _tolerance(policy)
    except (TypeError, ValueError, RuntimeError):  # it takes no position ids, or none that restart
        packs = False
    reason = obstacle(policy.model, max(sample.num_tokens for sample in samples))
    if reason is None:
        try:
            apart = gap("shared")
            if not apart < _tolerance(policy):
                reason = f"its log-probs differ with a cache (by {apart:.2g})"
        except (TypeError, ValueError, RuntimeError) as error:
            reason = f"its forward with a cache fails: {first_line(error)}"
    return packs, reason


def _probe_sample(index: int, group: int, vocabulary: int) -> Sample:
    """Makes a sample of 5 to 8 tokens. Its group's prompt has 3 or 2 of them."""
    prompt = tuple((5 * i + 2 * group + 1) % vocabulary for i in range(3 - group))
    ids = (torch.arange(3 + index) * 7 + 3 * index + 1) % vocabulary
    ones, zeros = torch.ones(len(ids), dtype=torch.bool), torch.zeros(len(ids))
    return Sample(index, group, prompt, ids, ones, 0.0, 0.0, len(ids), zeros)


def _tolerance(policy: Policy) -> float:
    return 2e-2 if policy.compute_dtype in (torch.bfloat16, torch.float16) else 1e-4


@torch.no_grad()
def probe_head(policy: Policy, path: str, flag: str = "--model") -> None:
    """Compares our head with the model's own on a few tokens. An unknown scale or cap would be silently wrong.

    Raises:
        ValueError: the logits differ, or are not finite.
    """
    model = policy.model
    ids = torch.arange(8, device=policy.device)[None] % model.config.get_text_config().vocab_size
    with unsharded(policy), policy.computing():
        want = model(input_ids=ids, use_cache=False).logits[0].double()
        got = (
            head(model).logits(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]).double()
        )
    if not torch.isfinite(want).all():
        raise ValueError(f"{flag} {path}: its logits are NaN or infinite: the weights are damaged")
    gap = float((got - want).abs().max() / want.abs().max().clamp(min=1))
    if not gap <= _tolerance(policy):
        raise ValueError(
            f"{flag} {path}: the head of {type(model).__name__} does something to its logits that grpokit does not "
            f"know (logits differ by {gap:.2g}); please report the architecture"
        )


def router_coefficient(model: Any, asked: float | None) -> float:
    """Returns the coefficient of a run's router auxiliary loss: the one asked for, else the model's own if its config asks."""
    if asked is not None:
        return asked
    wants = getattr(model.config.get_text_config(), "output_router_logits", False)
    return (_own(model, "router_aux_loss_coef") or 0.0) if wants else 0.0


def _own(model: Any, name: str) -> Any:
    """Returns a number of the router auxiliary loss that a model has, or else its config."""
    return getattr(model, name, getattr(model.config.get_text_config(), name, None))


def find_router_loss(policy: Policy, asked: float | None) -> RouterLoss | None:
    """Finds a run's router auxiliary loss. A collective where the policy is sharded.

    Args:
        policy: the model.
        asked: `--router_aux_loss_coef`; None: the model's own, where its config has output_router_logits true.

    Returns:
        The loss, or None where the coefficient is 0.

    Raises:
        ValueError: the model has no such loss, or computes its own by another formula.
    """
    model, coefficient = policy.model, router_coefficient(policy.model, asked)
    name, own, top_k = (
        type(model).__name__,
        _own(model, "router_aux_loss_coef"),
        _own(model, "num_experts_per_tok"),
    )
    if not coefficient:
        if own and asked is None:
            say(
                "note: the router auxiliary loss is off, because the model's config has output_router_logits false; "
                f"--router_aux_loss_coef {own:g} adds it"
            )
        return None
    origin = "" if asked else " (the model's own)"
    flag = f"--router_aux_loss_coef {coefficient:g}{origin}"
    if own is None or top_k is None:
        raise ValueError(f"{flag}: {name} has no router auxiliary loss; leave it out")
    router = RouterLoss(coefficient, top_k)
    if (problem := _router_problem(policy, router)) is not None:
        raise ValueError(f"{flag}: {problem}; set 0 to train without it")
    frozen = "" if policy.lora is None else "; the routers are frozen, so it moves the adapter alone"
    say(f"router auxiliary loss: × {coefficient:g}, over each update's layers and tokens{frozen}")
    return router


@torch.no_grad()
def _router_problem(policy: Policy, router: RouterLoss) -> str | None:
    """Compares our router loss with the model's own on a few tokens. Returns why it can't be used, or None."""
    model: Any = policy.model
    ids = torch.arange(16, device=policy.device).view(2, 8) % model.config.get_text_config().vocab_size
    name, experts = type(model).__name__, _own(model, "num_experts")
    if policy.lora is not None and any(
        "router" in place or place.endswith(".gate") for place in adapted_layers(model)
    ):
        return "the adapter changes the routers; name other --lora_target_modules"
    try:
        with unsharded(policy), policy.computing():
            theirs = model(input_ids=ids, use_cache=False, output_router_logits=True).aux_loss
            logits = run_backbone(model, True, input_ids=ids, use_cache=False).router_logits
            copies = torch.ones(ids.numel(), dtype=torch.int64, device=policy.device)
            ours = Balance.of(router, expert_use(logits, copies, router.top_k)).share(logits, copies)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return f"{name}'s router logits can't be read ({first_line(error)})"
    if any(of_layer.shape != (ids.numel(), experts or of_layer.shape[-1]) for of_layer in logits):
        return f"{name}'s router logits are not one number for each of {experts} experts"
    if all(
        bool((of_layer >= 0).all() and ((of_layer.sum(-1) - 1).abs() < 0.01).all()) for of_layer in logits
    ):
        return (
            f"{name} gives probabilities in the place of router logits; a newer transformers may give logits"
        )
    gap = float((ours - theirs).abs() / theirs.abs())
    return None if gap <= CLOSE else f"{name} computes it in another way (it differs by {gap:.2g})"
