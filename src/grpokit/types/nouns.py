"""The nouns of the library: what travels from one stage of training to the next, with shapes and an example each.

Letters: P prompts, G completions of each prompt, B samples, T tokens of a completion, N trainable tokens of a batch,
L tokens of a forward's row, F reward functions, H hidden size. Every class is frozen: a stage returns a new object
(`dataclasses.replace`) and changes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .metric import Metrics

if TYPE_CHECKING:
    from .episode import Episode

Messages = list[dict[str, Any]]
SAMPLED = (
    "prompts",
    "completions",
    "completion_ids",
)  # what rewards get in addition to the dataset's columns
# How the samples of a forward are laid out. `padded`: each sample is padded to the longest. `packed`: the samples follow
# each other in one row, without padding. `shared`: each prompt is computed once, and its completions continue it.
Layout = Literal["padded", "packed", "shared"]


# --------------------------------------------------------------------------- prompts, rollouts, groups


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, at its position in the endless order of the data.

    Example:
        >>> p = Prompt(position=5, ids=(1, 7, 9), content="sort 7 9 1 =", columns={"answer": "1 7 9"}, source="a.jsonl:6")
        >>> p.columns["answer"]
        '1 7 9'
    """

    position: int  # its number in the endless order (step·P + p), which keys the randomness of its rollouts
    ids: tuple[int, ...]  # the tokens that the model reads, chat template included
    content: str | Messages  # what reward functions get as `prompts`: a text, or the messages of a chat
    columns: Mapping[str, Any]  # every other column of the dataset's row, by name
    source: str  # "file:line", for error messages
    prefix: str = ""  # the end of the prompt that rewards and logs get as the beginning of its completions
    dataset: str = ""  # the name of its dataset, where there are several


@dataclass(frozen=True, eq=False)
class Rollout:
    """One completion, sampled from the policy.

    Example:
        >>> kept = torch.tensor([True, True])
        >>> rollout = Rollout(torch.tensor([7, 2]), torch.tensor([-0.1, -0.3]), torch.rand(2), "7", "stop", 0, kept)
        >>> len(rollout.completion_ids), rollout.finish_reason
        (2, 'stop')
    """

    completion_ids: Tensor  # [T] int64, with the end-of-sequence token
    logps: Tensor  # [T] log-probs under the distribution that was sampled from (μ), float32 or wider
    entropies: Tensor  # [T] entropies of the full tempered distribution, in nats
    text: str  # the decoded completion with its special tokens, up to the end-of-sequence token
    finish_reason: Literal["stop", "length"]
    policy_version: int  # optimizer steps taken before the weights that sampled it
    trainable: Tensor  # [T] bool: False for tokens that must not be trained on
    # The turns, where there may be several; between them, logps are 0 and entropies NaN.
    episode: Episode | None = None
    # [T] log-probs under the full tempered distribution; None where that was sampled from, or the engine doesn't tell.
    full_logps: Tensor | None = None
    teacher_logps: Tensor | None = None  # [T] log-probs under the teacher; None without one

    @property
    def is_dropped(self) -> bool:
        """Whether it is an episode whose environment failed: it has no reward, and is not trained on."""
        return self.episode is not None and self.episode.error is not None

    def prompt_content(self, prompt: Prompt) -> str | Messages:
        """Returns the prompt as rewards and logs get it, with what an environment has added to that of the row."""
        own = None if self.episode is None else self.episode.prompt
        return prompt.content if own is None else own

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Returns the prompt's tokens: an environment may have added to those of the row."""
        return prompt.ids if self.episode is None else self.episode.prompt_ids


@dataclass(frozen=True, eq=False)
class RolloutGroup:
    """The G completions of one prompt. Scoring adds the rewards, and the estimator adds the advantages.

    Example:
        >>> prompt = Prompt(0, (1, 7), "7 =", {}, "a.jsonl:1")
        >>> ones = torch.ones(1)
        >>> rollout = Rollout(torch.tensor([7]), -ones, ones, "7", "stop", 0, ones.bool())
        >>> RolloutGroup(prompt, (rollout, rollout), reward=torch.tensor([1.0, 0.0])).reward.mean()
        tensor(0.5000)
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]  # G completions
    rewards: Tensor | None = None  # [G, F] float64; NaN where a function does not apply
    reward: Tensor | None = None  # [G] float64, the weighted sum; NaN where no function applies
    advantages: Tensor | None = None  # [G] float64; exactly 0 for a group without signal
    # G × [T] float64, the weighted sum of the rewards that functions gave to tokens that end a step, NaN at all others.
    # `reward` has them too.
    token_rewards: tuple[Tensor, ...] | None = None
    # G × [T] float64, where the estimator gives an advantage for each token. `advantages` are then their means.
    token_advantages: tuple[Tensor, ...] | None = None
    greedy: Rollout | None = None  # the prompt's greedy completion, where the estimator compares with it
    greedy_reward: Tensor | None = None  # scalar float64, its weighted sum; NaN where no function applies
    kl: Tensor | None = None  # [G] float64, Σ_t (old − ref), where it is part of the reward (--kl_in_reward)
    # What reward functions have logged of each completion: column → G values that JSON has.
    extras: Mapping[str, Sequence[Any]] = field(default_factory=dict)


# --------------------------------------------------------------------------- what the update trains on


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sequence of an update: a prompt, one completion, and everything the loss needs except the policy's log-probs.

    The fields `*_logps` hold the T_i trainable tokens only, in order.

    Example:
        >>> kept, mu = torch.tensor([True, True]), torch.tensor([-0.1, -0.3])
        >>> sample = Sample(0, 0, (1, 7, 9), torch.tensor([7, 2]), kept, 1.0, 0.25, 2, mu)
        >>> sample.num_tokens
        5
    """

    index: int  # its number within the update, the same however the update is cut
    group: int  # the number of its group within the update
    prompt_ids: tuple[int, ...]
    completion_ids: Tensor  # [T]
    trainable: Tensor  # [T] bool, true for T_i tokens
    advantage: float | Tensor  # one for all its tokens, or [T_i]
    weight: float  # w_i of each of its tokens, fixed for the whole update
    length: int  # T_i, its trainable tokens
    sampler_logps: Tensor  # [T_i] μ, as the sampling engine recorded them
    old_logps: Tensor | None = None  # [T_i]; None in the step's first update, where the ratio is 1
    ref_logps: Tensor | None = None  # [T_i]
    teacher_logps: Tensor | None = None  # [T_i]
    # The weight of each of its tokens in the teacher's term: 1 / the update's trainable tokens.
    teacher_weight: float = 0.0

    def keeping(self, kept: Tensor) -> Sample:
        """Returns the sample of the trainable tokens that `kept` [T_i] bool names; the others are not trained on."""
        trainable = torch.zeros_like(self.trainable)
        trainable[torch.nonzero(self.trainable).flatten()[kept]] = True
        of_tokens = ("advantage", "sampler_logps", "old_logps", "ref_logps", "teacher_logps")
        fields = {name: getattr(self, name) for name in of_tokens}
        picked = {name: value[kept] for name, value in fields.items() if isinstance(value, Tensor)}
        return replace(self, trainable=trainable, length=int(kept.sum()), **picked)

    @property
    def advantages(self) -> Tensor:
        """Returns the advantage of each trainable token [T_i] float64."""
        return torch.as_tensor(self.advantage, dtype=torch.float64).expand(self.length)

    @property
    def origin(self) -> tuple[int, tuple[int, ...]]:
        """Returns what samples that can share a prompt have in common: their group, and the prompt's tokens."""
        return self.group, self.prompt_ids

    @property
    def num_tokens(self) -> int:
        """Returns the tokens of prompt and completion together, which a forward computes."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, eq=False)
class Update:
    """The samples of one optimizer step. Weights and counts are fixed over them, before anything is cut.

    Example:
        >>> update = Update(samples=(), num_tokens=0)
    """

    samples: tuple[Sample, ...]
    num_tokens: int  # trainable tokens of all its samples


@dataclass(frozen=True, eq=False)
class Prefix:
    """The distinct prompts of a micro-batch in the `shared` layout. Its samples are completions that continue them.

    Example:
        >>> prefix = Prefix(torch.tensor([[1, 7, 9]]), of=torch.tensor([0, 0]), mask=None)  # two completions of one prompt
    """

    input_ids: Tensor  # [P, Lp], padded on the right
    of: Tensor  # [B] the number of the prompt that each sample continues
    mask: Tensor | None  # [B, Lp + L] 0 at a prompt's padding, else 1; None where all prompts have one length

    def to(self, device: torch.device | str) -> Prefix:
        """Copies the tensors to `device`."""
        mask = None if self.mask is None else self.mask.to(device)
        return Prefix(self.input_ids.to(device), self.of.to(device), mask)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Some samples of an update for one forward, and their N trainable tokens as flat lists.

    Padding is always on the right. A causal model never reads it, so no layout needs a mask for it. Only the padding
    between a prompt and its completion in the `shared` layout needs one: `prefix.mask`.

    Example:
        >>> from grpokit.batch.collate import collate
        >>> kept, mu = torch.tensor([True, True]), torch.tensor([-0.1, -0.3])
        >>> sample = Sample(0, 0, (1, 7, 9), torch.tensor([7, 2]), kept, 1.0, 0.25, 2, mu)
        >>> collate([sample], "padded", "cpu").targets
        tensor([7, 2])
    """

    # [B, L]; packed: [1, L]; shared: [B, L] of completions, mostly without their last token.
    input_ids: Tensor
    position_ids: Tensor | None  # like input_ids; packed: from 0 in each sample; shared: after the prompt's
    prefix: Prefix | None  # the prompts in the `shared` layout, else None
    copies: (
        Tensor  # [M] how many samples each input token counts for: k for a prompt that k share; 0 for padding
    )
    at: Tensor  # [N] index of the hidden state that predicts the token, in [M, H]: the prompts' states, then the samples'
    targets: Tensor  # [N] the tokens to predict
    samples: tuple[Sample, ...]  # in the order of the batch
    sequence_ids: Tensor  # [N] index of the token's sample within the update
    group_ids: Tensor  # [N] index of its group within the update
    positions: Tensor  # [N] place of the token in its completion
    lengths: Tensor  # [N] T_i of the token's sample
    advantages: Tensor  # [N]
    weights: Tensor  # [N]
    # [N]; None where they are of another distribution than `logps`, so that the two are not to be compared
    sampler_logps: Tensor | None
    old_logps: Tensor | None  # [N]
    ref_logps: Tensor | None  # [N]
    teacher_logps: Tensor | None = None  # [N]
    teacher_weights: Tensor | None = None  # [N]

    @property
    def layout(self) -> Layout:
        """Returns the layout that these fields describe."""
        if self.prefix is not None:
            return "shared"
        return "padded" if self.position_ids is None else "packed"


# --------------------------------------------------------------------------- what a forward and a loss give


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """How often each expert was chosen, in some slice of an update. It adds up over slices and ranks, exactly.

    Example: `ExpertUse(torch.tensor([3, 1]), torch.tensor(4)) + ExpertUse(torch.tensor([0, 2]), torch.tensor(2))`
    """

    chosen: Tensor  # [E] int64
    pairs: Tensor  # scalar int64: pairs of a layer and a token

    def __add__(self, other: ExpertUse) -> ExpertUse:
        return ExpertUse(self.chosen + other.chosen, self.pairs + other.pairs)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """The log-probs and entropies that a forward gives for a micro-batch's N trainable tokens.

    Example:
        >>> scores = TokenScores(logps=torch.tensor([-0.1, -0.3]))
    """

    logps: Tensor  # [N]
    entropies: Tensor | None = None  # [N]; None unless they were asked for
    experts: ExpertUse | None = None  # what the routers chose; None unless it was asked for


@dataclass(frozen=True, eq=False)
class LossOutput:
    """A slice's share of the update's loss, and its metrics. Both are additive over slices and ranks.

    Example:
        >>> LossOutput(torch.tensor(0.5), {}).loss
        tensor(0.5000)
    """

    loss: Tensor  # scalar Σ w·ℓ over this slice; shares are summed over slices and ranks, never averaged
    metrics: Metrics
