"""The nouns of the journey: what travels from one room to the next, with shapes and an example each.

Letters: P prompts, G generations of each, T tokens of a completion, N trainable tokens of a batch, F reward
functions. Everything here is frozen: a room returns a new noun (`dataclasses.replace`) and edits none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Messages = list[dict[str, Any]]
SAMPLED = ("prompts", "completions", "completion_ids")  # what rewards get beside the dataset's columns
MetricKind = Literal["mean", "sum", "max", "min", "derived"]
# The layout of samples in a forward: each padded to the longest; one after the other without padding; or completions
# only, which continue prompts that are computed once for all of them.
Layout = Literal["padded", "packed", "shared"]


# --------------------------------------------------------------------------- prompts, rollouts, groups


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt, as drawn from the endless order.

    Example: `Prompt(position=5, ids=(1, 7, 9), content="sort 7 9 1 =", columns={"answer": "1 7 9"},
    source="train.jsonl:6")`
    """

    position: int  # number in the endless order (step·P + p); keys the randomness of its rollouts
    ids: tuple[int, ...]  # the tokens that the model sees, chat template included
    content: str | Messages  # what reward functions get as `prompts`: text, or messages of a chat
    columns: Mapping[str, Any]  # every other column of the row, by name
    source: str  # "file:line", for messages to the user


@dataclass(frozen=True, eq=False)
class Rollout:
    """One completion sampled from the policy. Example: `G` of these make a `RolloutGroup`."""

    completion_ids: Tensor  # [T] int64, the end-of-sequence token included
    logps: Tensor  # [T] log-probabilities under the whole tempered distribution, float32 or wider
    entropies: Tensor  # [T] entropy of that distribution, in nats
    text: str  # the decoded completion, special tokens left out
    finish_reason: Literal["stop", "length"]
    policy_version: int  # number of optimizer steps behind the weights that sampled it
    trainable: Tensor  # [T] bool: False for tokens that may not be trained on


@dataclass(frozen=True, eq=False)
class RolloutGroup:
    """The G completions of one prompt, and what was found out about them on the way.

    Example: a group of two after scoring, `rewards` [[1.0], [0.0]] and `reward` [1.0, 0.0].
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]  # G of them
    rewards: Tensor | None = None  # [G, F] float64, NaN where a function does not apply
    reward: Tensor | None = None  # [G] float64, weighted sum; NaN where no function applies
    advantages: Tensor | None = None  # [G] float64, exactly 0 where the group says nothing


# --------------------------------------------------------------------------- what the update trains on


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence of an update: prompt and completion with everything the loss needs but the log-probs.

    `*_logps` are over the sequence's T_i trainable tokens only, in order.
    """

    index: int  # its number within the update, the same however the update is cut
    group: int  # its group's number within the update
    prompt_ids: tuple[int, ...]
    completion_ids: Tensor  # [T]
    trainable: Tensor  # [T] bool, T_i of them true
    advantage: float
    weight: float  # w_i: fixed for the whole update
    length: int  # T_i
    sampler_logps: Tensor  # [T_i]
    old_logps: Tensor | None = None  # [T_i]; None in the step's first update, where the ratio is 1
    ref_logps: Tensor | None = None  # [T_i]

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion together: what the forward pays for."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, eq=False)
class Update:
    """One update: the unit over which weights and counts are fixed, before anything is cut."""

    samples: tuple[Sample, ...]
    num_tokens: int  # trainable tokens of the update


@dataclass(frozen=True, eq=False)
class Prefix:
    """The prompts of a micro-batch, each once, where its samples are completions that continue them."""

    input_ids: Tensor  # [P, Lp], padded on the right
    of: Tensor  # [B] the prompt that each sample continues
    mask: Tensor | None  # [B, Lp + L] 0 where a prompt's padding is, else 1; None where all are of one length

    def to(self, device: torch.device | str) -> Prefix:
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Prefix(self.input_ids.to(device), self.of.to(device), mask)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Some samples of an update for one forward, and their N trainable tokens in flat lists.

    Samples are whole sequences, right-padded or packed, or, with a prefix, completions alone. A causal model never looks
    right, so that no layout needs a mask for the padding there.
    """

    input_ids: Tensor  # [B, L]; packed: [1, L]; with a prefix: of completions, without their last token
    position_ids: Tensor | None  # like input_ids: packed, from 0 in each sample; with a prefix; else None
    prefix: Prefix | None
    at: Tensor  # [N] place of the hidden state that predicts the token, among the prefix's and then the samples' [M, H]
    targets: Tensor  # [N] the tokens
    samples: tuple[Sample, ...]  # in order
    sequence_ids: Tensor  # [N] index of the token's sample within the update
    group_ids: Tensor  # [N]
    positions: Tensor  # [N] place of the token in its completion
    lengths: Tensor  # [N] T_i of the token's sequence
    advantages: Tensor  # [N]
    weights: Tensor  # [N]
    sampler_logps: Tensor  # [N]
    old_logps: Tensor | None  # [N]
    ref_logps: Tensor | None  # [N]

    @property
    def layout(self) -> Layout:
        """How its samples are laid out in the forward."""
        if self.prefix is not None:
            return "shared"
        return "padded" if self.position_ids is None else "packed"


# --------------------------------------------------------------------------- the loss and its metrics


def _ess(s: Tensor, s2: Tensor, n: Tensor) -> Tensor:
    return s * s / (n * s2)


def _std(s: Tensor, s2: Tensor, n: Tensor) -> Tensor:
    return ((s2 - s * s / n) / (n - 1)).clamp(min=0).sqrt()


FORMULAS = {"ess": _ess, "std": _std}  # of (Σx, Σx², n)


@dataclass(frozen=True, eq=False)
class Metric:
    """An additive quantity: `a + b` joins slices or ranks, and `value` is taken once, when shown.

    Kinds: `mean` (sum, count), `sum`, `max`, `min`, and `derived` (a formula over Σx, Σx², n, such as the effective
    sample size). No kind holds an average, so no cut of the batch can change a value.

    Example: `(Metric.mean(torch.tensor([1., 2.])) + Metric.mean(torch.tensor([6.]))).value == 3.0`
    """

    kind: MetricKind
    parts: tuple[Tensor, ...]  # float64 scalars
    formula: str = ""

    @staticmethod
    def mean(values: Tensor) -> Metric:
        """The mean over all entries of `values` (any shape)."""
        return Metric("mean", (values.detach().sum(dtype=torch.float64), _count(values)))

    @staticmethod
    def share(part: float, whole: float) -> Metric:
        """The mean `part / whole` of two totals that are known already."""
        return Metric(
            "mean", (torch.tensor(part, dtype=torch.float64), torch.tensor(whole, dtype=torch.float64))
        )

    @staticmethod
    def sum(values: Tensor) -> Metric:
        """The sum over all entries of `values` (any shape)."""
        return Metric("sum", (values.detach().sum(dtype=torch.float64),))

    @staticmethod
    def max(values: Tensor) -> Metric:
        """The largest entry of `values` (any shape); minus infinity when there is none."""
        floor = torch.full((1,), -torch.inf, dtype=torch.float64, device=values.device)
        return Metric("max", (torch.cat([floor, values.detach().double().flatten()]).amax(),))

    @staticmethod
    def min(values: Tensor) -> Metric:
        """The smallest entry of `values` (any shape); infinity when there is none."""
        return Metric("min", tuple(-part for part in Metric.max(-values).parts))

    @staticmethod
    def derived(formula: str, values: Tensor) -> Metric:
        """`formula` (a key of FORMULAS) over Σx, Σx², n of all entries of `values`."""
        x = values.detach().double()
        return Metric("derived", (x.sum(), (x * x).sum(), _count(values)), formula)

    def __add__(self, other: Metric) -> Metric:
        if (self.kind, self.formula) != (other.kind, other.formula):
            raise ValueError(
                f"cannot join metrics of kinds {self.kind}/{self.formula} and {other.kind}/{other.formula}"
            )
        join = {"max": torch.maximum, "min": torch.minimum}.get(self.kind, torch.add)
        return Metric(
            self.kind, tuple(join(a, b) for a, b in zip(self.parts, other.parts, strict=True)), self.formula
        )

    @property
    def value(self) -> float:
        """The number to show; NaN where there was nothing to measure."""
        if self.kind == "sum":
            return float(self.parts[0])
        if self.kind in ("max", "min"):
            return float(self.parts[0]) if torch.isfinite(self.parts[0]) else float("nan")
        if self.kind == "mean":
            return float(self.parts[0] / self.parts[1])
        return float(FORMULAS[self.formula](*self.parts))

    def __float__(self) -> float:
        return self.value

    def to_json(self) -> list[Any]:
        """For another process or a file; `from_json` brings the very same numbers back."""
        return [self.kind, self.formula, [float(part) for part in self.parts]]

    @staticmethod
    def from_json(written: list[Any]) -> Metric:
        """What `to_json` wrote."""
        kind, formula, parts = written
        return Metric(kind, tuple(torch.tensor(part, dtype=torch.float64) for part in parts), formula)


def _count(values: Tensor) -> Tensor:
    return torch.tensor(values.numel(), dtype=torch.float64, device=values.device)


Metrics = dict[str, Metric]


def join_metrics(a: Mapping[str, Metric], b: Mapping[str, Metric]) -> Metrics:
    """Metrics of two slices together; a name that only one of them has is kept as it is."""
    return {**a, **b, **{name: a[name] + b[name] for name in a.keys() & b.keys()}}


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What a forward says of a micro-batch's N trainable tokens."""

    logps: Tensor  # [N]
    entropies: Tensor | None = None  # [N] where they were asked for


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What the loss says of one slice: its additive share of the update's loss, and additive metrics."""

    loss: Tensor  # scalar: Σ w·ℓ over this slice; shares are summed over slices and ranks, never averaged
    metrics: Metrics
