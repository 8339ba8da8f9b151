"""Runs in this process: started from a configuration and trained to their end, and samples cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from grpokit.batch.collate import collate
from grpokit.batch.cuts import Sharing, cut_samples
from grpokit.config.options import TrainConfig
from grpokit.parallel import ALONE, World
from grpokit.policy.learn import StepProgress
from grpokit.training import session
from grpokit.training.run import Run
from grpokit.training.setup import start as setup
from grpokit.training.signals import StopRequest
from grpokit.types import MicroBatch, Sample


class StartedRun(Run):
    """A run, with the step that was under way when its checkpoint was written."""

    unfinished: StepProgress | None = None


def start(config: TrainConfig, world: World = ALONE, stop: StopRequest | None = None) -> StartedRun:
    """Puts a run together, as the command line does."""
    run, progress = setup.start(config, world, stop)
    started = StartedRun(**vars(run))
    started.unfinished = progress
    return started


def train(run: StartedRun) -> None:
    """Trains it to its end."""
    session.train_to_end(run, run.unfinished)


def micro_batches(
    samples: Iterable[Sample],
    budget: int,
    device: torch.device | str = "cpu",
    *,
    packed: bool = False,
    share: Sharing = "never",
    rank: int = 0,
    ranks: int = 1,
) -> list[MicroBatch]:
    """A rank's forwards of these samples, as an update has them."""
    cut = cut_samples(samples, budget, packed=packed, share=share, ranks=ranks)
    return [collate(part, cut.layout, device) for part in cut.parts[rank]]
