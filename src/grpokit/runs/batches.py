"""Recorded batches: the tokens of one update as a file, for comparing losses on the same data.

A file holds fields of LossBatch as flat lists [N]: `logps`, `old_logps`, `advantages`, `sequence_ids` and, where known,
`ref_logps`, `sampler_logps`, `entropies`, `group_ids`, `positions`, `lengths`. It has no weights, because they depend on
the loss. Formats: .safetensors and .npz (numpy, without pickled objects).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.writing import write_tensors
from ..losses import Counts, Loss, LossBatch, sequence_weights
from ..types import Sample

REQUIRED = ("logps", "advantages", "sequence_ids")
OPTIONAL = tuple(f.name for f in dataclasses.fields(LossBatch) if f.name not in (*REQUIRED, "weights"))


def write_batch(
    path: Path, samples: Sequence[Sample], old: Mapping[int, Tensor], new: Mapping[int, Tensor]
) -> None:
    """Writes an update's samples.

    Args:
        path: the .safetensors file.
        samples: the update's samples.
        old: sample index → [T_i], log-probs before the step's updates.
        new: sample index → [T_i], log-probs after them; samples that are missing here are left out.
    """
    samples = [sample for sample in samples if sample.index in new]
    lengths = torch.tensor([sample.length for sample in samples])

    def per_token(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).repeat_interleave(lengths)

    fields = {
        "logps": torch.cat([new[sample.index] for sample in samples]),
        "old_logps": torch.cat([old[sample.index] for sample in samples]),
        "sampler_logps": torch.cat([sample.sampler_logps for sample in samples]),
        "advantages": torch.cat([sample.advantages for sample in samples]),
        "sequence_ids": per_token([sample.index for sample in samples]),
        "group_ids": per_token([sample.group for sample in samples]),
        "lengths": per_token([sample.length for sample in samples]),
        "positions": torch.cat([torch.nonzero(sample.trainable).flatten() for sample in samples]),
    }
    write_tensors(path, fields)


def read_batch(path: str | Path) -> dict[str, Tensor]:
    """Reads the fields of a recorded batch, each [N].

    Raises:
        ValueError: the file is missing or malformed. The message names it and the problem.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; expected a batch recorded by `train --record_batches K`, or an .npz"
        )
    fields = _load(file)
    missing = [name for name in REQUIRED if name not in fields]
    unknown = sorted(fields.keys() - {*REQUIRED, *OPTIONAL})
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has an unknown field {unknown[0]}"
        raise ValueError(
            f"{path}: {what}; fields are {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)}"
        )
    if not len(fields["logps"]):
        raise ValueError(f"{path}: has no tokens")
    return fields


def _load(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".npz":
        import zipfile

        import numpy as np

        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file}: cannot be read as .npz: {error}") from error
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot be read as .safetensors: {error}") from error
    raise ValueError(f"{file}: expected .safetensors or .npz")


def batch_for(loss: Loss, fields: Mapping[str, Tensor]) -> LossBatch:
    """Builds the LossBatch of the recorded tokens for `loss`, in float64, with its weights."""
    values = {k: v.double() if v.is_floating_point() else v.long() for k, v in fields.items()}
    ids, index = values["sequence_ids"].unique(return_inverse=True)
    lengths = torch.bincount(index, minlength=len(ids))
    values.setdefault("lengths", lengths[index])
    groups = None
    if "group_ids" in values:
        groups = torch.zeros_like(ids).scatter_(0, index, values["group_ids"])
    weights = sequence_weights(loss, lengths, Counts.of(lengths, groups), groups)
    return LossBatch(weights=weights[index], **values)
