"""Groups as tensors, to send them between ranks and to write them to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..parallel import World
from ..types import Episode, Prompt, Rollout, RolloutGroup

Tensors = dict[str, Tensor]


def gather_groups(
    groups: Sequence[RolloutGroup], prompt_at: Callable[[int], Prompt], world: World
) -> list[RolloutGroup]:
    """The groups of all ranks, in the order of ranks, on every rank. `prompt_at` finds a prompt by its position."""
    if world.size == 1:
        return list(groups)
    parts = world.gather_tensors(groups_to_tensors(groups))
    return [group for part in parts for group in groups_from_tensors(part, prompt_at)]


def ragged(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Joins tensors of different lengths; the result is at least as wide as `dtype`."""
    return torch.cat([torch.zeros(0, dtype=dtype), *parts])


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode("utf-8", "surrogatepass")), dtype=torch.uint8)


def _text(values: Tensor) -> str:
    return values.numpy().tobytes().decode("utf-8", "surrogatepass")


def groups_to_tensors(groups: Sequence[RolloutGroup]) -> Tensors:
    """Groups without their prompts, of which only the position in the endless order is kept."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    texts = [_bytes(rollout.text) for rollout in rollouts]
    found = {
        "position": torch.tensor([group.prompt.position for group in groups], dtype=torch.int64),
        "size": torch.tensor([len(group.rollouts) for group in groups], dtype=torch.int64),
        "length": torch.tensor([len(r.completion_ids) for r in rollouts], dtype=torch.int64),
        "completion_ids": ragged([r.completion_ids for r in rollouts], torch.int64),
        "logps": ragged([r.logps for r in rollouts], torch.float32),
        "entropies": ragged([r.entropies for r in rollouts], torch.float32),
        "trainable": ragged([r.trainable for r in rollouts], torch.bool),
        "stopped": torch.tensor([r.finish_reason == "stop" for r in rollouts], dtype=torch.bool),
        "policy_version": torch.tensor([r.policy_version for r in rollouts], dtype=torch.int64),
        "text": ragged(texts, torch.uint8),
        "text_length": torch.tensor([len(text) for text in texts], dtype=torch.int64),
    }
    if any(r.full_logps is not None for r in rollouts):
        unknown = [
            torch.full_like(r.logps, torch.nan) for r in rollouts
        ]  # an episode without a turn has none
        full = [u if r.full_logps is None else r.full_logps for r, u in zip(rollouts, unknown, strict=True)]
        found["full_logps"] = ragged(full, torch.float32)
    if any(r.teacher_logps is not None for r in rollouts):
        found["teacher_logps"] = torch.cat([r.teacher_logps for r in rollouts if r.teacher_logps is not None])
    if any(r.episode is not None for r in rollouts):
        episodes = [_bytes("" if r.episode is None else r.episode.to_json()) for r in rollouts]
        found["episode"] = ragged(episodes, torch.uint8)
        found["episode_length"] = torch.tensor([len(text) for text in episodes], dtype=torch.int64)
    if any(group.extras for group in groups):
        found["extras"] = _bytes(json.dumps([dict(group.extras) for group in groups], ensure_ascii=False))
    for name in ("rewards", "reward", "advantages", "kl"):
        parts = [getattr(group, name) for group in groups]
        if parts and parts[0] is not None:
            found[name] = torch.cat(parts)
    for name in ("token_advantages", "token_rewards"):
        if any(getattr(group, name) is not None for group in groups):
            found |= _of_tokens(groups, name)
    if groups and groups[0].greedy_reward is not None:
        found["greedy_reward"] = torch.stack([g.greedy_reward for g in groups if g.greedy_reward is not None])
    return found


def _of_tokens(groups: Sequence[RolloutGroup], name: str) -> Tensors:
    """Returns a field of the groups that has [T] for each completion, and which groups have it."""
    parts = [
        torch.zeros(len(rollout.completion_ids), dtype=torch.float64) if value is None else value
        for group in groups
        for rollout, value in zip(
            group.rollouts, getattr(group, name) or [None] * len(group.rollouts), strict=True
        )
    ]
    known = torch.tensor([getattr(group, name) is not None for group in groups])
    return {name: torch.cat(parts), f"{name}_known": known}


def groups_from_tensors(
    tensors: Mapping[str, Tensor], prompt_at: Callable[[int], Prompt]
) -> list[RolloutGroup]:
    """Restores groups from tensors, as `groups_to_tensors` made them; `prompt_at` finds a prompt by its position."""
    lengths, sizes = tensors["length"].tolist(), tensors["size"].tolist()
    names = ("completion_ids", "logps", "entropies", "trainable", "full_logps", "teacher_logps")
    per_token = {name: tensors[name].split(lengths) for name in names if name in tensors}
    texts = tensors["text"].split(tensors["text_length"].tolist())
    episodes: list[Episode | None] = [None] * len(lengths)
    if "episode" in tensors:
        written = map(_text, tensors["episode"].split(tensors["episode_length"].tolist()))
        episodes = [Episode.from_json(text) if text else None for text in written]
    rollouts = [
        Rollout(
            **{name: parts[i] for name, parts in per_token.items()},
            text=_text(texts[i]),
            finish_reason="stop" if tensors["stopped"][i] else "length",
            policy_version=int(tensors["policy_version"][i]),
            episode=episodes[i],
        )
        for i in range(len(lengths))
    ]
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()
    per_group: dict[str, Sequence[Any]] = {
        n: tensors[n].split(sizes) for n in ("rewards", "reward", "advantages", "kl") if n in tensors
    }
    for name in ("token_advantages", "token_rewards"):
        if name in tensors:
            parts = tensors[name].split(lengths)
            known = tensors[f"{name}_known"].tolist()
            per_group[name] = [
                parts[end - size : end] if has else None
                for size, end, has in zip(sizes, ends, known, strict=True)
            ]
    if "greedy_reward" in tensors:
        per_group["greedy_reward"] = tensors["greedy_reward"].unbind()
    extras = json.loads(_text(tensors["extras"])) if "extras" in tensors else [{}] * len(sizes)
    return [
        RolloutGroup(
            prompt_at(position),
            tuple(rollouts[end - size : end]),
            **{name: parts[i] for name, parts in per_group.items()},
            extras=extras[i],
        )
        for i, (position, size, end) in enumerate(zip(tensors["position"].tolist(), sizes, ends, strict=True))
    ]
