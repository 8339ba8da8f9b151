"""A step's data as flat tensors, for sending between ranks and for checkpoints. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..losses import Stats
from ..types import Prompt, Rollout, RolloutGroup, Sample, Update

Tensors = dict[str, Tensor]


def _ragged(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=dtype), *parts])  # widened to the widest part


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
        "completion_ids": _ragged([r.completion_ids for r in rollouts], torch.int64),
        "logps": _ragged([r.logps for r in rollouts], torch.float32),
        "entropies": _ragged([r.entropies for r in rollouts], torch.float32),
        "trainable": _ragged([r.trainable for r in rollouts], torch.bool),
        "stopped": torch.tensor([r.finish_reason == "stop" for r in rollouts], dtype=torch.bool),
        "policy_version": torch.tensor([r.policy_version for r in rollouts], dtype=torch.int64),
        "text": _ragged(texts, torch.uint8),
        "text_length": torch.tensor([len(text) for text in texts], dtype=torch.int64),
    }
    for name in ("rewards", "reward", "advantages"):
        parts = [getattr(group, name) for group in groups]
        if parts and parts[0] is not None:
            found[name] = torch.cat(parts)
    return found


def groups_from_tensors(
    tensors: Mapping[str, Tensor], prompt_at: Callable[[int], Prompt]
) -> list[RolloutGroup]:
    """What `groups_to_tensors` took apart; `prompt_at` finds a prompt by its position."""
    lengths, sizes = tensors["length"].tolist(), tensors["size"].tolist()
    per_token = {n: tensors[n].split(lengths) for n in ("completion_ids", "logps", "entropies", "trainable")}
    texts = tensors["text"].split(tensors["text_length"].tolist())
    rollouts = [
        Rollout(
            **{name: parts[i] for name, parts in per_token.items()},
            text=_text(texts[i]),
            finish_reason="stop" if tensors["stopped"][i] else "length",
            policy_version=int(tensors["policy_version"][i]),
        )
        for i in range(len(lengths))
    ]
    per_group = {n: tensors[n].split(sizes) for n in ("rewards", "reward", "advantages") if n in tensors}
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()
    return [
        RolloutGroup(
            prompt_at(position),
            tuple(rollouts[end - size : end]),
            **{name: parts[i] for name, parts in per_group.items()},
        )
        for i, (position, size, end) in enumerate(zip(tensors["position"].tolist(), sizes, ends, strict=True))
    ]


_LOGPS = ("old_logps", "ref_logps")


def samples_to_tensors(samples: Sequence[Sample]) -> Tensors:
    """Converts an update's samples to tensors by name."""
    found = {
        "index": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        "group": torch.tensor([sample.group for sample in samples], dtype=torch.int64),
        "prompt_length": torch.tensor([len(sample.prompt_ids) for sample in samples], dtype=torch.int64),
        "prompt_ids": _ragged([torch.tensor(sample.prompt_ids) for sample in samples], torch.int64),
        "completion_length": torch.tensor(
            [len(sample.completion_ids) for sample in samples], dtype=torch.int64
        ),
        "completion_ids": _ragged([sample.completion_ids for sample in samples], torch.int64),
        "trainable": _ragged([sample.trainable for sample in samples], torch.bool),
        "advantage": torch.tensor([sample.advantage for sample in samples], dtype=torch.float64),
        "weight": torch.tensor([sample.weight for sample in samples], dtype=torch.float64),
        "length": torch.tensor([sample.length for sample in samples], dtype=torch.int64),
        "sampler_logps": _ragged([sample.sampler_logps for sample in samples], torch.float32),
    }
    for name in _LOGPS:
        known = [sample for sample in samples if getattr(sample, name) is not None]
        if known:
            found[name] = torch.cat([getattr(sample, name) for sample in known])
            found[name + "_known"] = torch.tensor([getattr(sample, name) is not None for sample in samples])
    return found


def samples_from_tensors(tensors: Mapping[str, Tensor]) -> tuple[Sample, ...]:
    """Restores what `samples_to_tensors` converted."""
    lengths = tensors["length"].tolist()
    count = len(lengths)
    prompts = tensors["prompt_ids"].split(tensors["prompt_length"].tolist())
    of_completion = {
        name: tensors[name].split(tensors["completion_length"].tolist())
        for name in ("completion_ids", "trainable")
    }
    logps = {"sampler_logps": list(tensors["sampler_logps"].split(lengths))}
    for name in _LOGPS:
        if name in tensors:
            known = tensors[name + "_known"].tolist()
            parts = iter(tensors[name].split([n for n, has in zip(lengths, known, strict=True) if has]))
            logps[name] = [next(parts) if has else None for has in known]  # pyright: ignore[reportArgumentType]
    return tuple(
        Sample(
            index=int(tensors["index"][i]),
            group=int(tensors["group"][i]),
            prompt_ids=tuple(prompts[i].tolist()),
            advantage=float(tensors["advantage"][i]),
            weight=float(tensors["weight"][i]),
            length=lengths[i],
            **{name: parts[i] for name, parts in of_completion.items()},
            **{name: parts[i] for name, parts in logps.items()},
        )
        for i in range(count)
    )


def updates_to_tensors(updates: Sequence[Update]) -> Tensors:
    """Converts a step's updates to tensors, each under its number."""
    return {
        f"{u}/{name}": value
        for u, update in enumerate(updates)
        for name, value in {
            **samples_to_tensors(update.samples),
            "num_tokens": torch.tensor([update.num_tokens]),
        }.items()
    }


def updates_from_tensors(tensors: Mapping[str, Tensor]) -> list[Update]:
    """Restores what `updates_to_tensors` converted."""
    numbers = sorted({int(name.split("/")[0]) for name in tensors})
    parts = [{n.split("/", 1)[1]: v for n, v in tensors.items() if n.startswith(f"{u}/")} for u in numbers]
    return [Update(samples_from_tensors(part), int(part["num_tokens"])) for part in parts]


def stats_to_tensors(stats: Stats) -> Tensors:
    """Converts an update's statistics to tensors by name."""
    found = {"sequence_ids": stats.sequence_ids, "positions": stats.positions}
    found |= {f"token/{name}": value for name, value in stats.by_token.items()}
    found |= {f"sequence/{name}": value for name, value in stats.by_sequence.items()}
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def stats_from_tensors(tensors: Mapping[str, Tensor]) -> Stats:
    """Restores what `stats_to_tensors` converted."""

    def part(prefix: str) -> Tensors:
        return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

    return Stats(tensors["sequence_ids"], tensors["positions"], part("token/"), part("sequence/"))


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Renames the tensors to `prefix`/name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Returns the tensors under `prefix`, without it."""
    return {n.removeprefix(prefix + "/"): v for n, v in tensors.items() if n.startswith(prefix + "/")}
