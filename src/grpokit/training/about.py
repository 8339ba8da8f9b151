"""Writes about.json: facts of a run that its configuration doesn't have, for whoever looks at the run from outside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from ..common import VERSION
from ..common.writing import write_text
from .setup.announce import batch_plan
from .setup.loss import objective_of

if TYPE_CHECKING:
    from .run import Run

FILE = "about.json"


def write_about(run: Run) -> None:
    """Writes the facts of a run into its directory. The main rank writes them."""
    facts = about(run)
    with run.world.together():
        if run.world.is_main:
            write_text(run.output / FILE, json.dumps(facts, ensure_ascii=False, indent=1) + "\n")


def about(run: Run) -> dict[str, Any]:
    """Returns a run's model, loss, batch plan and device.

    The numbers of parameters are those of the whole model, however it is sharded.
    """
    policy, config = run.policy, run.config
    loss, formula = objective_of(config, run.loss)
    parameters = list(policy.parameters())
    is_gpu = policy.device.type == "cuda"
    return {
        "model": type(policy.model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "loss": loss,
        "formula": formula,
        "plan": batch_plan(config, run.world.size).removeprefix("plan: "),
        "max_steps": config.max_steps,  # with --num_train_epochs, the steps that it comes to
        "ranks": run.world.size,
        "device": torch.cuda.get_device_name(policy.device) if is_gpu else "CPU",
        "dtype": str(policy.compute_dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "grpokit": VERSION,
    }
