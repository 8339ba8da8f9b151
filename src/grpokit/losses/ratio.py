"""Log-ratios: how far the policy has moved from where the step began, at each level.

A level is a function of a LossBatch that returns one log-ratio per trainable token, [N].
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .batch import LossBatch

# Before any exp. e^20 ≈ 5e8 squares to less than float32's largest number, so sums of squares stay finite too.
MAX_LOG_RATIO = 20.0


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """`log_ratio` [N] clamped to ±20, with gradient 0 outside, so that its exp is finite in float32."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def token(batch: LossBatch) -> Tensor:
    """log ρ = logp − old, one ratio per token [N]; on-policy (no old) it is 0, with the gradient of logp."""
    old = batch.logps.detach() if batch.old_logps is None else batch.old_logps
    return batch.logps - old


RATIO_LEVELS: dict[str, Callable[[LossBatch], Tensor]] = {"token": token}
