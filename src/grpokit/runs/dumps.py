"""Writes a micro-batch whose loss or gradient is not finite to a file, and reads it back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..common.writing import write_tensors
from ..config.options import TrainConfig
from ..config.yaml import from_yaml, to_yaml
from ..policy.scoring import FirstPass, Offender
from ..types import Layout, Sample
from .tensors import (
    add_prefix,
    balance_from_tensors,
    balance_to_tensors,
    samples_from_tensors,
    samples_to_tensors,
    stats_from_tensors,
    stats_to_tensors,
    strip_prefix,
)


@dataclass(frozen=True)
class Dump:
    """The content of a dump: the samples, what was fixed over the update, and the point in the run where it happened."""

    samples: tuple[Sample, ...]
    whole: FirstPass
    config: TrainConfig
    layout: Layout
    what: str
    step: int  # steps finished before it
    policy_version: int


def write_offender(
    file: Path, offender: Offender, config: TrainConfig, step: int, policy_version: int
) -> None:
    """Writes a micro-batch with everything a replay needs except the weights.

    Args:
        file: the .safetensors file.
        offender: the micro-batch.
        config: the run's options.
        step: steps finished before it.
        policy_version: optimizer steps taken before it.
    """
    tensors = add_prefix("samples", samples_to_tensors(offender.samples))
    whole = offender.whole
    if whole.stats is not None:
        tensors |= add_prefix("stats", stats_to_tensors(whole.stats))
    if whole.balance is not None:
        tensors |= add_prefix("balance", balance_to_tensors(whole.balance))
    about = {
        "what": offender.what,
        "layout": offender.layout,
        "step": step,
        "policy_version": policy_version,
    }
    write_tensors(file, tensors, {"about": json.dumps(about), "config": to_yaml(config)})


def read_offender(file: Path) -> Dump:
    """Reads what `write_offender` wrote. Raises ValueError naming the file if it is something else."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected a dump from a run's nonfinite/ directory")
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        about = json.loads(metadata["about"])
        stats, balance = strip_prefix("stats", tensors), strip_prefix("balance", tensors)
        return Dump(
            samples=samples_from_tensors(strip_prefix("samples", tensors)),
            whole=FirstPass(
                stats_from_tensors(stats) if stats else None,
                balance_from_tensors(balance) if balance else None,
            ),
            config=from_yaml(TrainConfig, metadata["config"], str(file)),
            **about,
        )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: is no dump of a micro-batch: {error}") from error
