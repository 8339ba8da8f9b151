"""Recorded tokens: what a step did to each token of some completions, as files that `grpokit watch` shows.

`tokens/step-000012.safetensors` has flat lists over the T tokens of N completions:

    lengths [N] int32, ids [T] int32, piece [T] int32 (index into the metadata's `pieces`), logps [T] float32 (the sampler's),
    entropies [T] float32, trainable [T] uint8, advantages [T] float32, ratios [T] float32 (π/π_old when the token was last
    trained on), pull [T] float32 (−∂loss/∂log π of that update), state [T] uint8 (see token_states.py).

What was not computed is NaN. The metadata are strings: `step`, `pieces` (a JSON list of texts) and `completions` (a JSON list
of objects).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.writing import write_tensors
from ..rewards import Reward
from ..types import Rollout, RolloutGroup
from .token_states import CLIPPED, MASKED, NO_ADVANTAGE, NOT_OURS, TRAINED, UNKNOWN, file_name, step_of

MOST_BYTES = 256 * 2**20  # all files together


@dataclass(frozen=True, eq=False)
class TracedTokens:
    """The effect of a completion's last update on the tokens that it trained on.

    Example:
        >>> one = torch.ones(1)
        >>> traced = TracedTokens(torch.tensor([True, False]), one, one, one, one)
    """

    trained: Tensor  # [T] bool: the tokens that the update trained on, T_i of them
    ratios: Tensor  # [T_i] π/π_old
    pull: Tensor  # [T_i] −∂loss/∂log π
    policy: Tensor  # [T_i] the policy term's part of it
    factor: Tensor  # [T_i] 0 where a correction or a mask took the token out


@dataclass
class Pieces:
    """The texts of tokens, so that a page can show them one by one.

    Args:
        tokenizer: the run's tokenizer.
    """

    tokenizer: Any
    known: dict[int, str] = field(default_factory=dict)

    def text(self, token: int) -> str:
        """Returns a token's text; a part of a character is "\\ufffd"."""
        if token not in self.known:
            text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            raw = self.tokenizer.convert_ids_to_tokens(token)
            # Some tokenizers drop the space before a word that stands alone.
            starts = isinstance(raw, str) and raw.startswith("▁") and not text.startswith(" ")
            self.known[token] = " " + text if starts else text
        return self.known[token]


def choose(groups: Sequence[RolloutGroup], count: int) -> list[int]:
    """Returns the numbers of `count` completions, counted over all groups: evenly spaced by rank of reward, best to worst."""
    rewards: list[float] = []
    for group in groups:
        known = [math.nan] * len(group.rollouts) if group.reward is None else group.reward.tolist()
        rewards += [-math.inf if math.isnan(reward) else reward for reward in known]
    order = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
    if count >= len(order):
        return sorted(order)
    last = len(order) - 1
    return sorted({order[round(k * last / max(1, count - 1))] for k in range(count)})


def token_tensors(
    groups: Sequence[RolloutGroup], chosen: Sequence[int], traced: Mapping[int, TracedTokens], pieces: Pieces
) -> tuple[dict[str, Tensor], list[str]]:
    """Builds the tensors of a step's file.

    Args:
        groups: the step's groups, with advantages.
        chosen: numbers of completions over all groups.
        traced: by such a number, what training has done; a completion that no update trained on isn't there.
        pieces: the texts of tokens.

    Returns:
        The tensors, and the texts that `piece` refers to.
    """
    places = [(group, g) for group in groups for g in range(len(group.rollouts))]
    rollouts = [places[i][0].rollouts[places[i][1]] for i in chosen]
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    columns = {
        "ids": torch.cat([rollout.completion_ids for rollout in rollouts]).int(),
        "logps": torch.cat([rollout.logps for rollout in rollouts]).float(),
        "entropies": torch.cat([rollout.entropies for rollout in rollouts]).float(),
        "trainable": torch.cat([rollout.trainable for rollout in rollouts]),
        "advantages": torch.cat(
            [_advantages(*places[i], n) for i, n in zip(chosen, lengths, strict=True)]
        ).float(),
    }
    own = torch.cat([own_tokens(rollout) for rollout in rollouts])
    columns |= _done(columns, own, [traced.get(i) for i in chosen], lengths)
    texts: dict[str, int] = {}
    piece = [texts.setdefault(pieces.text(token), len(texts)) for token in columns["ids"].tolist()]
    columns |= {"lengths": torch.tensor(lengths), "piece": torch.tensor(piece)}
    integers = {"lengths": torch.int32, "piece": torch.int32, "trainable": torch.uint8}
    return {name: column.to(integers.get(name, column.dtype)) for name, column in columns.items()}, list(
        texts
    )


def _advantages(group: RolloutGroup, g: int, length: int) -> Tensor:
    """Returns the advantage of each token of a completion [T]."""
    if group.token_advantages is not None:
        return group.token_advantages[g].double()
    return torch.zeros(length) if group.advantages is None else group.advantages[g].expand(length)


def _done(
    columns: Mapping[str, Tensor], own: Tensor, traced: Sequence[TracedTokens | None], lengths: Sequence[int]
) -> dict[str, Tensor]:
    """Returns what training has done to the tokens: `ratios`, `pull` and `state`, each [T].

    Args:
        columns: `advantages` and `trainable`, each [T].
        own: [T] whether the model wrote the token.
        traced: what was done to each completion, or None.
        lengths: the tokens of each completion.
    """
    advantages, trainable = columns["advantages"], columns["trainable"]
    ratios, pull = torch.full((2, len(own)), torch.nan)
    state = torch.full((len(own),), UNKNOWN, dtype=torch.uint8)
    state[advantages == 0] = NO_ADVANTAGE
    found = [each for each in traced if each is not None]
    if found:
        none = [torch.zeros(n, dtype=torch.bool) for n in lengths]
        trained = torch.cat([n if t is None else t.trained for n, t in zip(none, traced, strict=True)])
        learned = torch.cat([torch.full((n,), t is not None) for n, t in zip(lengths, traced, strict=True)])
        ratios[trained] = torch.cat([each.ratios for each in found]).float()
        pull[trained] = torch.cat([each.pull for each in found]).float()
        policy, factor = (torch.cat([getattr(each, name) for each in found]) for name in ("policy", "factor"))
        is_dead = advantages[trained] == 0
        done = torch.full((len(policy),), TRAINED, dtype=torch.uint8)
        done[(policy == 0) & ~is_dead] = CLIPPED
        done[(pull[trained] == 0) & is_dead] = NO_ADVANTAGE
        done[factor == 0] = MASKED
        state[learned] = MASKED  # a token that the update didn't have, though it had the completion
        state[trained] = done
    state[~trainable] = MASKED
    state[~own] = NOT_OURS
    return {"ratios": ratios, "pull": pull, "state": state}


def own_tokens(rollout: Rollout) -> Tensor:
    """Tells which tokens the model wrote [T] bool: in an episode, those of its turns."""
    if rollout.episode is None:
        return torch.ones_like(rollout.trainable)
    own = torch.zeros_like(rollout.trainable)
    for begin, end in rollout.episode.turns:
        own[begin:end] = True
    return own


def completion_records(
    groups: Sequence[RolloutGroup], chosen: Sequence[int], rewards: Sequence[Reward]
) -> list[dict[str, Any]]:
    """Returns what the metadata say about each chosen completion."""
    places = [(number, group, g) for number, group in enumerate(groups) for g in range(len(group.rollouts))]
    return [_record(*places[i], rewards) for i in chosen]


def _record(number: int, group: RolloutGroup, g: int, rewards: Sequence[Reward]) -> dict[str, Any]:
    rollout = group.rollouts[g]
    episode, table = rollout.episode, group.rewards
    return {
        "group": number,
        "generation": g,
        "source": group.prompt.source,
        "prompt": rollout.prompt_content(group.prompt),
        "reward": _number(group.reward, g),
        "rewards": {
            r.name: None if table is None else _number(table[:, f], g) for f, r in enumerate(rewards)
        },
        "advantage": _number(group.advantages, g),
        "finish_reason": rollout.finish_reason,
        "ending": None if episode is None else episode.ending,
        "turns": None if episode is None else len(episode.turns),
    }


def _number(values: Tensor | None, g: int) -> float | None:
    value = math.nan if values is None else float(values[g])
    return None if math.isnan(value) else value


# --------------------------------------------------------------------------- files


@dataclass
class TokenFiles:
    """The files of a run's recorded tokens, which stay below a bound.

    Steps that are multiples of `every` are kept, and the newest. Where the files grow over the bound, `every` doubles: the
    recorded steps stay evenly spaced.

    Args:
        folder: the run's directory `tokens`.
        most_bytes: the bound of all files together.
    """

    folder: Path
    most_bytes: int = MOST_BYTES
    every: int = 1
    sizes: dict[int, int] | None = None  # step → bytes of its file; None: not read yet

    def write(
        self, step: int, tensors: Mapping[str, Tensor], pieces: Sequence[str], records: Sequence[Any]
    ) -> None:
        """Writes a step's file, and removes older ones where all are more than the bound. Raises OSError naming the file.

        Args:
            step: the step's number, counted from 1.
            tensors: see `token_tensors`.
            pieces: the texts of tokens.
            records: see `completion_records`.
        """
        metadata = {
            "step": str(step),
            "pieces": json.dumps(pieces, ensure_ascii=False),
            "completions": json.dumps(records, ensure_ascii=False, default=str),
        }
        if self.every > 1:
            self._remove(lambda old: old % self.every)
        path, sizes = self._path(step), self._known()
        write_tensors(path, tensors, metadata)
        sizes[step] = path.stat().st_size
        while sum(sizes.values()) > self.most_bytes and len(sizes) > 1:
            self.every *= 2
            self._remove(lambda old: old % self.every and old != step)

    def steps(self) -> list[int]:
        """Returns the recorded steps in order."""
        return sorted(self._known())

    def cut(self, last_step: int) -> None:
        """Removes the files of steps after `last_step`, which a resumed run makes again."""
        self._remove(lambda old: old > last_step)

    def _path(self, step: int) -> Path:
        return self.folder / file_name(step)

    def _known(self) -> dict[int, int]:
        """Returns step → bytes of its file. The directory is read once: a long run has thousands of files."""
        if self.sizes is None:
            steps = {path: step_of(path.name) for path in self.folder.glob("step-*")}
            self.sizes = {step: path.stat().st_size for path, step in steps.items() if step is not None}
        return self.sizes

    def _remove(self, unwanted: Callable[[int], object]) -> None:
        sizes = self._known()
        for step in [step for step in sizes if unwanted(step)]:
            self._path(step).unlink(missing_ok=True)
            del sizes[step]
