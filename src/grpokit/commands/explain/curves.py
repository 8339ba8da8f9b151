"""ℓ and the gradient weight g of a loss along its ratio. `policy_loss` computes them, so no formula is repeated.

Each point of a curve is a sequence of one token. A loss that couples tokens needs to know about the others. SECTIONS has
these cross-sections, by the name of the statistic that they fix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...losses import LOSSES, Loss, LossBatch, Stats, UpdateStats, make_loss, policy_loss

EXAMPLE_LENGTH = 1024  # L_max of a drawn loss that needs one; it does not enter ℓ


@dataclass(frozen=True)
class Section:
    """The quantities that stay fixed while the ratio moves: statistics of the update, or the sampler's μ."""

    label: str = ""  # mathtext
    fixed: Mapping[str, float] = field(default_factory=dict)  # statistic → its value on every token
    mu: float | None = None


SECTIONS: dict[str, tuple[Section, ...]] = {
    "future": (Section("$F_t=0$", {"future": 0.0}), Section("$F_t=1$", {"future": 1.0})),
    "selected": (Section(r"$t\notin S$", {"selected": 0.0}), Section(r"$t\in S$", {"selected": 1.0})),
    "kept": (Section("$M=1$", {"kept": 1.0}), Section("$M=0$", {"kept": 0.0})),
}
SAMPLER_SECTIONS = tuple(Section(rf"$\mu={mu:g}$", mu=mu) for mu in (0.1, 0.3, 0.6, 0.9))


@dataclass(frozen=True, eq=False)
class Curve:
    """A loss along its axis, for one sign of A and one cross-section. All tensors are [n] float64."""

    loss: Loss
    section: Section
    advantage: float
    x: Tensor  # ρ; for a loss anchored on the sampler, π
    ell: Tensor
    g: Tensor  # ∂ℓ/∂logp = −g·A
    held: Tensor  # bool: the ratio is outside the loss's range (clipped, capped or dropped)


def compose(loss: str | Loss) -> Loss:
    """Makes a loss by name, with its row's defaults. Raises ValueError for an unknown name."""
    if isinstance(loss, Loss):
        return loss
    needs_length = loss in LOSSES and LOSSES[loss].reduction == "constant_length"
    return make_loss(loss, max_completion_length=EXAMPLE_LENGTH if needs_length else None)


def sections(loss: Loss) -> tuple[Section, ...]:
    """Returns the cross-sections to draw: one for a loss that does not couple tokens."""
    if loss.surrogate.anchor == "sampler":
        return SAMPLER_SECTIONS
    return next((SECTIONS[name] for name in loss.surrogate.inputs if name in SECTIONS), (Section(),))


def curve(loss: Loss, x: Tensor, advantage: float, section: Section | None = None) -> Curve:
    """Computes ℓ and g at `x`.

    `old` is 0, so a factor log π counts from π_old. If no section fixes a loss's statistics, each point is an update of two
    tokens: the token itself, and one of ratio 1 with the opposite advantage in the same group.

    Args:
        loss: the loss.
        x: [n] ratios, or the policy's probabilities if the loss is anchored on the sampler.
        advantage: A of the token.
        section: the cross-section; None: the loss's first.

    Returns:
        The curve.
    """
    section = section or sections(loss)[0]
    logps = x.double().log()
    if loss.needs_stats and not section.fixed:
        parts = [_evaluate(loss, one, advantage, section, partner=True) for one in logps.split(1)]
        ell, g = (torch.cat(values) for values in zip(*parts, strict=True))
    else:
        ell, g = _evaluate(loss, logps, advantage, section)
    return Curve(loss, section, advantage, x, ell, g, _held(loss, logps, advantage, g))


def _evaluate(
    loss: Loss, logps: Tensor, advantage: float, section: Section, partner: bool = False
) -> tuple[Tensor, Tensor]:
    """Computes (ℓ, g) [n] at `logps` [n]. The reduction's weights are 1, because they do not enter ℓ."""
    n, own = len(logps), torch.ones(len(logps), dtype=torch.float64)
    ids = torch.arange(n + partner)
    logps = torch.cat([logps, torch.zeros(int(partner))]).requires_grad_()
    weights = torch.cat([own, torch.zeros(int(partner))]).requires_grad_()
    batch = LossBatch(
        logps=logps,
        old_logps=torch.zeros_like(logps),
        advantages=torch.cat([advantage * own, -advantage * torch.ones(int(partner))]),
        weights=weights,
        sequence_ids=ids,
        group_ids=torch.zeros_like(ids) if partner else ids,
        positions=torch.zeros_like(ids),
        lengths=torch.ones_like(ids),
        sampler_logps=None if section.mu is None else torch.full_like(logps, section.mu).log(),
    )
    total = policy_loss(loss, batch, stats=_stats(loss, batch, section)).loss
    slope, ell = torch.autograd.grad(total, [logps, weights], allow_unused=True, materialize_grads=True)
    # L = Σ w·ℓ, so ℓ = ∂L/∂w. A loss that weighs itself has no w, and its value is the update's.
    ell = total.expand(n) if loss.surrogate.weighs_itself else ell[:n]
    return ell.detach() + 0.0, -slope[:n] / advantage + 0.0  # + 0.0 turns −0.0 into 0.0


def _stats(loss: Loss, batch: LossBatch, section: Section) -> Stats | None:
    if loss.coupling == "token":
        return None
    stats = UpdateStats.of(loss, batch).finish(loss)
    fixed = {name: torch.full_like(batch.weights, value).detach() for name, value in section.fixed.items()}
    return dataclasses.replace(stats, by_token={**stats.by_token, **fixed})


def _held(loss: Loss, logps: Tensor, advantage: float, g: Tensor) -> Tensor:
    """Returns where the loss's own health metric says that the ratio is held; without one, where the gradient is 0."""
    part, advantages = loss.surrogate, torch.full_like(g, advantage)
    health = {} if part.health is None else part.health(logps.exp(), advantages, **loss.options)
    region = health.get("clip_ratio/region_mean", torch.zeros_like(g, dtype=torch.bool))
    return region | (g == 0) if part.health is None else region


def edge(drawn: Curve, k: int) -> float:
    """Returns the x between points k and k + 1 where the ratio begins (or ceases) to be held, to 12 digits."""
    low, high = float(drawn.x[k]), float(drawn.x[k + 1])
    for _ in range(40):
        middle = (low + high) / 2
        here = curve(drawn.loss, torch.tensor([middle]).double(), drawn.advantage, drawn.section)
        low, high = (middle, high) if bool(here.held[0]) == bool(drawn.held[k]) else (low, middle)
    return high
