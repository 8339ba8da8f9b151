"""`Loss`: a frozen composition of parts, and the properties that follow: coupling, required fields and invariances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .correction import Correction
from .ratio import RATIO_LEVELS, RatioLevel
from .reductions import REDUCTION_FORMULAS
from .surrogate import COUPLINGS, Surrogate

TEACHER_FORMULA = r"\frac{\gamma}{\sum_j T_j}\sum_{i,t}\left(\log\pi - \log\pi_{teacher}\right)"


@dataclass(frozen=True)
class Loss:
    """A validated composition, made by `make_loss`: ratio level × surrogate × reduction, with its options and terms.

    Example:
        >>> from grpokit.losses import make_loss
        >>> loss = make_loss("gspo")
        >>> loss.coupling, sorted(loss.invariances)
        ('sequence', ['ranks', 'sequences', 'stats'])
    """

    name: str
    ratio_level: str
    surrogate: Surrogate
    reduction: str
    options: Mapping[str, Any] = field(hash=False)  # the surrogate's options, all resolved
    beta: float = 0.0
    kl_estimator: str = "k3"
    kl_gradient: str = "own"
    entropy_coef: float = 0.0
    teacher_coef: float = 0.0  # coefficient of the KL to a teacher, whose weights are its own
    teacher_kl_gradient: str = "k2"
    top_entropy_quantile: float | None = None
    correction: Correction | None = None
    opsm_threshold: float | None = None
    rejected_tokens: str = "keep"
    max_completion_length: int | None = None
    scale_rewards: str = "group"

    @property
    def level(self) -> RatioLevel:
        """Returns the RatioLevel object."""
        return RATIO_LEVELS[self.ratio_level]

    @property
    def coupling(self) -> str:
        """Returns what a slice must hold whole: `token`, `sequence`, or, with UpdateStats, `group` or `step`."""
        parts = [self.surrogate.needs_update]
        sequence_correction = self.correction is not None and self.correction.needs_sequences
        if self.level.statistic or sequence_correction or self.opsm_threshold is not None:
            parts.append("sequence")
        normalized = self.correction is not None and self.correction.normalize
        if self.top_entropy_quantile is not None or normalized:
            parts.append("step")
        return max(parts, key=COUPLINGS.index)

    @property
    def needs_stats(self) -> bool:
        """Checks whether `policy_loss` needs the statistics of the whole update."""
        return self.coupling in ("group", "step")

    @property
    def needs_entropies(self) -> bool:
        """Checks whether the batch must have the entropies of the policy being trained."""
        return bool(self.entropy_coef) or self.top_entropy_quantile is not None

    @property
    def needs_sampler(self) -> bool:
        """Checks whether the batch must have the sampler's log-probs."""
        corrected = self.correction is not None or self.opsm_threshold is not None
        return corrected or self.surrogate.anchor == "sampler"

    @property
    def one_advantage(self) -> bool:
        """Checks whether all tokens of a sequence must have the same advantage."""
        return self.surrogate.one_advantage or self.level.one_advantage

    @property
    def token_correction(self) -> Correction | None:
        """Returns the correction if it multiplies each token's ℓ by a weight of its own, else None."""
        of_tokens = self.correction is not None and self.correction.level == "token"
        return self.correction if of_tokens and not self.surrogate.correction_inside else None

    @property
    def rejects_tokens(self) -> bool:
        """Checks whether the correction gives some tokens the weight 0."""
        return self.correction is not None and (
            self.correction.mode != "truncate" or self.correction.keep is not None
        )

    @property
    def spreads_factor(self) -> bool:
        """Checks whether single tokens have factors of their own while the ratio is the whole sequence's.

        All tokens of the sequence then share the ratio's gradient, so each factor reaches all of them.
        """
        own = self.token_correction is not None or self.top_entropy_quantile is not None
        return own and self.level.one_advantage

    @property
    def drops_dead_rows(self) -> bool:
        """Checks whether a sequence with A = 0 on all its tokens has no gradient and needs no forward."""
        added = self.beta or self.entropy_coef or self.teacher_coef
        return self.surrogate.zero_at_zero_advantage and not added

    @property
    def invariances(self) -> frozenset[str]:
        """Returns the cuts that change neither loss, gradient nor metrics.

        `tokens`: any subset of the update's tokens can be a slice. `sequences`: any subset of whole sequences. `stats`: any
        subset of tokens, given the statistics of the whole update. `ranks`: any distribution over ranks.
        """
        found = {"stats"}
        if self.coupling in ("token", "sequence"):
            found.add("sequences")
        if self.coupling == "token":
            found.add("tokens")
        if self.reduction != "rank_token_mean":
            found.add("ranks")
        return frozenset(found)

    @property
    def stats_fields(self) -> tuple[str, ...]:
        """Returns the optional fields of the batch that the statistics need."""
        needs = {
            "positions": self.surrogate.statistics is not None or self.top_entropy_quantile is not None,
            "group_ids": self.surrogate.needs_update == "group",
            "entropies": self.top_entropy_quantile is not None,
            "sampler_logps": self.needs_sampler,
        }
        return tuple(name for name, needed in needs.items() if needed)

    @property
    def formula(self) -> str:
        """Returns the loss in LaTeX, one line per part: the sum, ℓ, the ratio (unless it is the token's), and w."""
        terms = r"\ell_{i,t}"
        if self.beta:
            terms += rf" + \beta\,{'k_' + self.kl_estimator[1]}"
        if self.entropy_coef:
            terms += r" - c\,H_{i,t}"
        teacher = f" + {TEACHER_FORMULA}" if self.teacher_coef else ""
        if self.surrogate.weighs_itself:  # its formula gives L itself
            return self.surrogate.formula + teacher
        inner = terms if terms == r"\ell_{i,t}" else rf"\left({terms}\right)"
        lines = [r"L = \sum_{i,t} w_i\," + inner + teacher, self.surrogate.formula]
        if self.ratio_level != "token":
            lines.append(self.level.formula)
        return "\n".join([*lines, REDUCTION_FORMULAS[self.reduction]])

    def __str__(self) -> str:
        shown = {name: value for name, value in self.options.items() if value is not None}
        shown |= {"beta": self.beta} | ({"teacher_coef": self.teacher_coef} if self.teacher_coef else {})
        options = ", ".join(
            f"{name} {v:g}" if isinstance(v, float) else f"{name} {v}" for name, v in shown.items()
        )
        corrected = "" if self.correction is None else f", {self.correction}"
        return f"{self.name} = {self.ratio_level} ratio × {self.surrogate.name} × {self.reduction} ({options}{corrected})"
