"""`policy_loss`: a loss and a batch of tokens → this slice's additive share of the update's loss, and metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import LossOutput, Metric, Metrics
from .batch import LossBatch
from .correction import Correction, diagnostics
from .kl import KL_ESTIMATORS, kl_term
from .loss import Loss
from .ratio import MAX_LOG_RATIO, clamp_log_ratio, token_log_ratio
from .stats import Stats, UpdateStats


def policy_loss(loss: Loss, batch: LossBatch, stats: Stats | None = None) -> LossOutput:
    """Computes Σ w·(M·c·ℓ + β·k − coef·H) over the batch's N tokens, in float32 or wider.

    The result is a share: sum shares over slices and ranks, never average them. An empty batch gives a zero that is
    connected to `logps`.

    Args:
        loss: from `make_loss`.
        batch: the slice's tokens.
        stats: from `UpdateStats.finish`, where the loss couples a group or a step, or sequences were cut.

    Returns:
        The share (a scalar with gradient) and additive metrics.

    Raises:
        ValueError: the batch lacks something the loss needs, such as `ref_logps`, whole sequences, or `stats`.

    Example:
        >>> from grpokit.losses import make_loss
        >>> one = torch.ones(2)
        >>> batch = LossBatch(logps=-one, advantages=one, weights=one / 2, sequence_ids=torch.tensor([0, 1]))
        >>> policy_loss(make_loss("grpo"), batch).loss
        tensor(-1.)
    """
    batch = batch.upcast()
    stats = _checked(loss, batch, stats)
    raw = token_log_ratio(batch, loss.surrogate.anchor)
    log_ratio = _log_ratio(loss, batch, clamp_log_ratio(raw), stats)
    parts = _parts(loss, batch, log_ratio, stats)
    share = torch.stack(list(parts.values())).sum() if len(parts) > 1 else parts["policy"]
    with torch.no_grad():
        metrics = {"loss": Metric.sum(share), **_metrics(loss, batch, raw, log_ratio, stats)}
        if len(parts) > 1:
            metrics |= {f"loss/{name}": Metric.sum(part) for name, part in parts.items()}
    return LossOutput(share, metrics)


@dataclass(frozen=True, eq=False)
class TokenPull:
    """The effect of a loss on each of N tokens. Example: `TokenPull(torch.ones(2), torch.ones(2), torch.ones(2))`"""

    pull: Tensor  # [N] −∂L/∂log π: above 0, the loss pushes the token's log-prob up; below 0, down
    policy: Tensor  # [N] the part of it that is the policy term's, without KL and teacher
    factor: Tensor  # [N] the sampler's correction times the masks: 0 where they take the token out


def token_pull(loss: Loss, batch: LossBatch, stats: Stats | None = None) -> TokenPull:
    """Computes −∂L/∂log π of each token: how the loss pulls at its log-prob. The entropy bonus is left out.

    Args:
        loss: from `make_loss`.
        batch: the slice's tokens; no gradient flows back into them.
        stats: as for `policy_loss`.

    Returns:
        The pull of all terms and of the policy term, and the factor.

    Raises:
        ValueError: as for `policy_loss`.

    Example:
        >>> from grpokit.losses import make_loss
        >>> ids, one = torch.tensor([0, 1]), torch.ones(2)
        >>> batch = LossBatch(logps=-one, advantages=torch.tensor([1.0, -1.0]), weights=one / 2, sequence_ids=ids)
        >>> token_pull(make_loss("grpo"), batch).pull
        tensor([ 0.5000, -0.5000])
    """
    batch = batch.upcast()
    logps = batch.logps.detach().requires_grad_()
    batch = replace(batch, logps=logps)
    with torch.enable_grad():
        stats = _checked(loss, batch, stats)
        log_ratio = _log_ratio(
            loss, batch, clamp_log_ratio(token_log_ratio(batch, loss.surrogate.anchor)), stats
        )
        parts = _parts(loss, batch, log_ratio, stats)
    policy = _gradient(parts["policy"], logps)
    added = [_gradient(part, logps) for name, part in parts.items() if name != "policy"]
    with torch.no_grad():
        return TokenPull(-(policy + sum(added)), -policy, _factor(loss, batch, stats))


def _gradient(part: Tensor, logps: Tensor) -> Tensor:
    """Computes ∂part/∂logps [N]: zeros where it doesn't depend on them."""
    if not part.requires_grad:
        return torch.zeros_like(logps)
    (found,) = torch.autograd.grad(part, logps, retain_graph=True, allow_unused=True)
    return torch.zeros_like(logps) if found is None else found


def _checked(loss: Loss, batch: LossBatch, stats: Stats | None) -> Stats | None:
    """Checks that the batch has what the loss needs. Returns its statistics, computed where the batch has whole sequences."""
    if stats is None and loss.coupling != "token":
        stats = _own_stats(loss, batch)
    _require(loss, batch)
    return stats


def _parts(loss: Loss, batch: LossBatch, log_ratio: Tensor, stats: Stats | None) -> dict[str, Tensor]:
    """Computes the slice's share of each term of the loss, by name."""
    policy = _policy_term(loss, batch, log_ratio, stats)
    parts = {"policy": policy.sum() if loss.surrogate.weighs_itself else (batch.weights * policy).sum()}
    return parts | {name: (weights * term).sum() for name, (weights, term) in _added(loss, batch).items()}


def _policy_term(loss: Loss, batch: LossBatch, log_ratio: Tensor, stats: Stats | None) -> Tensor:
    """Computes ℓ [N], times the sampler's correction and the masks."""
    inputs = [_input(name, batch, stats) for name in loss.surrogate.inputs]

    def ell(log_ratio: Tensor, logps: Tensor) -> Tensor:
        return loss.surrogate.fn(log_ratio, batch.advantages, logps, *inputs, **loss.options)

    factor = _factor(loss, batch, stats)
    if not loss.spreads_factor:
        return factor * ell(log_ratio, batch.logps)
    # The ratio is the whole sequence's and the factor is a token's own. Through the ratio, each logp moves all terms of the
    # sequence, so that path carries the sequence's mean factor. The direct path through logp carries the token's factor.
    through_ratio = ell(log_ratio, batch.logps.detach())
    mean_factor = _looked_up("mean_factor", batch, stats) * _sequence_factor(loss, batch, stats)
    return factor * ell(log_ratio.detach(), batch.logps) + mean_factor * (
        through_ratio - through_ratio.detach()
    )


def _own_stats(loss: Loss, batch: LossBatch) -> Stats:
    if loss.needs_stats:
        raise ValueError(
            f"{loss.name} couples the tokens of a whole {loss.coupling}: gather UpdateStats.of(loss, slice) over every slice of "
            "the update first, and pass stats=UpdateStats.finish(loss, seed, version)"
        )
    if batch.lengths is None:
        raise ValueError(
            f"{loss.name} needs whole sequences, which cannot be checked without LossBatch.lengths; give them, "
            "or pass stats= gathered over the whole update"
        )
    return UpdateStats.of(loss, batch).finish(loss)


def _require(loss: Loss, batch: LossBatch) -> None:
    if loss.beta and batch.ref_logps is None:
        raise ValueError(
            f"beta {loss.beta:g}: the KL penalty needs LossBatch.ref_logps; give them, or set beta 0"
        )
    if loss.teacher_coef and (batch.teacher_logps is None or batch.teacher_weights is None):
        raise ValueError(
            f"teacher_coef {loss.teacher_coef:g}: the KL to the teacher needs LossBatch.teacher_logps and teacher_weights"
        )
    if loss.needs_sampler and batch.sampler_logps is None:
        raise ValueError(
            f"{loss.name}: the sampler's log-probs are needed (LossBatch.sampler_logps), and there are none"
        )
    if loss.needs_entropies and batch.entropies is None:
        raise ValueError(
            f"{loss.name}: the policy's entropies are needed (LossBatch.entropies), and there are none"
        )


def _input(name: str, batch: LossBatch, stats: Stats | None) -> Tensor:
    value = getattr(batch, name, None)
    return value if value is not None else _looked_up(name, batch, stats)


def _looked_up(name: str, batch: LossBatch, stats: Stats | None) -> Tensor:
    if stats is None:
        raise ValueError(f"{name}: neither a field of the batch nor of its statistics")
    return stats.at(name, batch)


def _log_ratio(loss: Loss, batch: LossBatch, d: Tensor, stats: Stats | None) -> Tensor:
    """Computes the log-ratio [N] at the loss's level. For a few losses it includes the sampler's correction."""
    if loss.surrogate.before_mean is not None:
        d = loss.surrogate.before_mean(d, batch.advantages, **loss.options)
    if not loss.level.statistic:
        return d
    value = _looked_up("log_ratio", batch, stats)
    if loss.correction is not None and loss.surrogate.correction_inside:
        # Added before the clamp: only the sum has to be in range.
        value = value + _looked_up("inside", batch, stats)
    return loss.level.apply(d, value, _looked_up("length", batch, stats))


def _token_log_weight(batch: LossBatch) -> Tensor:
    """Computes log c = old − sampler [N], clamped, without gradient."""
    assert batch.sampler_logps is not None
    old = batch.logps.detach() if batch.old_logps is None else batch.old_logps
    return clamp_log_ratio(old - batch.sampler_logps)


def _correction_value(loss: Loss, batch: LossBatch, stats: Stats | None) -> Tensor:
    """Looks up or computes what the correction bounds, at its level [N]."""
    if loss.correction is None or loss.correction.level == "token":
        log_weight = _token_log_weight(batch)
        return log_weight if loss.correction is None else loss.correction.of_tokens(log_weight)
    return _looked_up("correction", batch, stats)


def _weight(correction: Correction, loss: Loss, batch: LossBatch, stats: Stats | None) -> Tensor:
    """Computes the correction's weight [N], divided by its mean where it is normalised."""
    weight = correction.weight(_correction_value(loss, batch, stats))
    return weight / _looked_up("mean_weight", batch, stats) if correction.normalize else weight


def _factor(loss: Loss, batch: LossBatch, stats: Stats | None) -> Tensor:
    """Computes the factor of the policy term [N]: the sampler's correction times the masks. It changes no count."""
    factor = _sequence_factor(loss, batch, stats)
    if loss.token_correction is not None:
        factor = factor * _weight(loss.token_correction, loss, batch, stats)
    if loss.top_entropy_quantile is not None:
        factor = factor * _looked_up("high_entropy", batch, stats)
    return factor


def _sequence_factor(loss: Loss, batch: LossBatch, stats: Stats | None) -> Tensor:
    """Computes the part of the factor [N] that all tokens of a sequence share."""
    factor = torch.ones_like(batch.advantages)
    if loss.correction is not None and loss.token_correction is None and not loss.surrogate.correction_inside:
        factor = _weight(loss.correction, loss, batch, stats)
    if loss.correction is not None and loss.correction.keep is not None:
        factor = factor * _looked_up("sequence_kept", batch, stats)
    return (
        factor if loss.opsm_threshold is None else torch.where(_off_policy(loss, batch, stats), 0.0, factor)
    )


def _off_policy(loss: Loss, batch: LossBatch, stats: Stats | None) -> Tensor:
    """Returns [N] bool: the tokens of sequences that OPSM drops (A < 0, mean(μ − logp) above the threshold)."""
    assert loss.opsm_threshold is not None
    return (batch.advantages < 0) & (_looked_up("drift", batch, stats) > loss.opsm_threshold)


def _added(loss: Loss, batch: LossBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Computes the terms beside the policy's, by name: their weights [N], and β·KL, −coef·H or coef·KL to the teacher [N].

    Corrections and masks do not apply to them.
    """
    terms: dict[str, tuple[Tensor, Tensor]] = {}
    if loss.beta and batch.ref_logps is not None:
        log_ratio = token_log_ratio(batch)
        kl = kl_term(batch.logps, batch.ref_logps, log_ratio, loss.kl_estimator, loss.kl_gradient)
        terms["kl"] = batch.weights, loss.beta * kl
    if loss.entropy_coef and batch.entropies is not None:
        terms["entropy"] = batch.weights, -loss.entropy_coef * batch.entropies
    if loss.teacher_coef and batch.teacher_logps is not None and batch.teacher_weights is not None:
        kl = kl_term(batch.logps, batch.teacher_logps, token_log_ratio(batch), "k1", loss.teacher_kl_gradient)
        terms["teacher"] = batch.teacher_weights, loss.teacher_coef * kl
    return terms


def _metrics(loss: Loss, batch: LossBatch, raw: Tensor, log_ratio: Tensor, stats: Stats | None) -> Metrics:
    """Computes the metrics over *live* tokens: those with A ≠ 0, or all where every token has a gradient.

    So dropping dead samples changes no metric.
    """
    live = (
        batch.advantages != 0 if loss.drops_dead_rows else torch.ones_like(batch.advantages, dtype=torch.bool)
    )
    ratio, advantages = clamp_log_ratio(log_ratio[live]).exp(), batch.advantages[live]
    metrics = {
        "ratio/mean": Metric.mean(ratio),
        "ratio/max": Metric.max(ratio),
        "ratio/ess": Metric.derived("ess", ratio),
        "ratio/clamped": Metric.mean(raw[live].abs() > MAX_LOG_RATIO),
    }
    if loss.surrogate.health is not None:
        for name, values in loss.surrogate.health(ratio, advantages, **loss.options).items():
            metrics[name] = Metric.mean(values)
    if loss.surrogate.before_mean is not None:
        d = clamp_log_ratio(raw[live])
        metrics["clip_ratio/region_mean"] = Metric.mean(
            loss.surrogate.before_mean(d, advantages, **loss.options) != d
        )
    for name in loss.surrogate.shown:
        metrics[f"{loss.surrogate.name}/{name}"] = Metric.mean(_input(name, batch, stats)[live])
    if loss.beta and batch.ref_logps is not None:
        metrics["kl"] = Metric.mean(KL_ESTIMATORS[loss.kl_estimator](batch.logps, batch.ref_logps)[live])
    if loss.teacher_coef and batch.teacher_logps is not None:
        metrics["teacher/kl"] = Metric.mean(KL_ESTIMATORS["k1"](batch.logps, batch.teacher_logps)[live])
    if loss.entropy_coef and batch.entropies is not None:
        metrics["entropy/trainer"] = Metric.mean(batch.entropies[live])
    if batch.sampler_logps is not None:
        keeps = loss.correction is not None and loss.correction.keep is not None
        metrics |= diagnostics(
            _token_log_weight(batch)[live],
            _correction_value(loss, batch, stats)[live],
            loss.correction,
            _looked_up("sequence_kept", batch, stats)[live] > 0 if keeps else None,
        )
    if loss.opsm_threshold is not None:
        metrics["opsm/dropped"] = Metric.mean(_off_policy(loss, batch, stats)[live])
    return metrics
