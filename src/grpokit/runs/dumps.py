"""Writes a micro-batch whose loss or gradient is not finite to a file, and reads it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..config.options import TrainConfig
from .tensors import add_prefix, samples_from_tensors, samples_to_tensors, stats_from_tensors, stats_to_tensors, strip_prefix
from ..losses import Stats
from ..config.yaml import from_yaml, to_yaml
from ..policy.learn import Offender
from ..types import Layout, Sample


@dataclass(frozen=True)
class Dump:
    """What a dump holds: the samples, the statistics they were given, and where in which run that was."""

    samples: tuple[Sample, ...]
    stats: Stats | None
    config: TrainConfig
    layout: Layout
    what: str
    step: int  # steps done before it
    policy_version: int


def write_offender(
    file: Path, offender: Offender, config: TrainConfig, step: int, policy_version: int
) -> None:
    """Write a micro-batch with all that a replay needs but the weights."""
    tensors = add_prefix("samples", samples_to_tensors(offender.samples))
    if offender.stats is not None:
        tensors |= add_prefix("stats", stats_to_tensors(offender.stats))
    about = {
        "what": offender.what,
        "layout": offender.layout,
        "step": step,
        "policy_version": policy_version,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"about": json.dumps(about), "config": to_yaml(config)})


def read_offender(file: Path) -> Dump:
    """What `write_offender` wrote. Raises ValueError naming the file where it's something else."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected a dump from a run's nonfinite/ directory")
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        about = json.loads(metadata["about"])
        stats = strip_prefix("stats", tensors)
        return Dump(
            samples=samples_from_tensors(strip_prefix("samples", tensors)),
            stats=stats_from_tensors(stats) if stats else None,
            config=from_yaml(TrainConfig, metadata["config"], str(file)),
            **about,
        )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: is no dump of a micro-batch: {error}") from error
