"""Updates and their statistics as tensors, to write them to a checkpoint or a dump. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..losses import Stats
from ..policy.router import Balance
from ..rollouts.gather import Tensors, ragged
from ..types import Sample, Update

_LOGPS = ("old_logps", "ref_logps", "teacher_logps")


def samples_to_tensors(samples: Sequence[Sample]) -> Tensors:
    """Converts an update's samples to tensors by name."""
    found = {
        "index": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        "group": torch.tensor([sample.group for sample in samples], dtype=torch.int64),
        "prompt_length": torch.tensor([len(sample.prompt_ids) for sample in samples], dtype=torch.int64),
        "prompt_ids": ragged([torch.tensor(sample.prompt_ids) for sample in samples], torch.int64),
        "completion_length": torch.tensor(
            [len(sample.completion_ids) for sample in samples], dtype=torch.int64
        ),
        "completion_ids": ragged([sample.completion_ids for sample in samples], torch.int64),
        "trainable": ragged([sample.trainable for sample in samples], torch.bool),
        "weight": torch.tensor([sample.weight for sample in samples], dtype=torch.float64),
        "length": torch.tensor([sample.length for sample in samples], dtype=torch.int64),
        "sampler_logps": ragged([sample.sampler_logps for sample in samples], torch.float32),
    }
    if any(isinstance(sample.advantage, Tensor) for sample in samples):
        found["advantages"] = ragged([sample.advantages for sample in samples], torch.float64)
    else:
        found["advantage"] = torch.tensor([sample.advantage for sample in samples], dtype=torch.float64)
    if any(sample.teacher_logps is not None for sample in samples):
        weights = [sample.teacher_weight for sample in samples]
        found["teacher_weight"] = torch.tensor(weights, dtype=torch.float64)
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
    per_token = "advantages" in tensors  # else one advantage for each sample
    advantages = tensors["advantages"].split(lengths) if per_token else tensors["advantage"].tolist()
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
            advantage=advantages[i],
            weight=float(tensors["weight"][i]),
            teacher_weight=float(tensors["teacher_weight"][i]) if "teacher_weight" in tensors else 0.0,
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


def balance_to_tensors(balance: Balance) -> Tensors:
    """Converts what a router loss's first pass has fixed to tensors by name."""
    return {
        "coefficient": torch.tensor(balance.coefficient, dtype=torch.float64),
        "frequency": balance.frequency.cpu(),
        "pairs": balance.pairs.cpu(),
    }


def balance_from_tensors(tensors: Mapping[str, Tensor]) -> Balance:
    """Restores what `balance_to_tensors` converted."""
    return Balance(float(tensors["coefficient"]), tensors["frequency"], tensors["pairs"])


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Renames the tensors to `prefix`/name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Returns the tensors under `prefix`, without it."""
    return {n.removeprefix(prefix + "/"): v for n, v in tensors.items() if n.startswith(prefix + "/")}
