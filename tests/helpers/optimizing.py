"""Among ranks: runs with the options of docs/en/optimizing.md, and each once more from its second step.

torchrun --nproc-per-node 2 -m helpers.optimizing DIR LAYOUT CUT JOB...

LAYOUT is the directory's name, CUT one of helpers.ranks, JOB one of JOBS.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from grpokit.parallel import ALONE, World, end_process, joined_world
from helpers import quick_reports
from helpers.ranks import CUTS
from helpers.running import start, train
from helpers.tiny import tiny_config

EIGHT_BITS = {"optim": "adamw_8bit", "dtype": "float32", "learning_rate": 1e-3}
JOBS: dict[str, dict] = {
    "whole": {
        "optim": "muon",
        "weight_decay": 0.1,
        "freeze_parameters": ("embed_tokens", "norm"),
        "trainable_parameters": ("k_norm",),
        "beta": 0.2,
        "kl_in_reward": True,
        "max_resample_times": 1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "updates_per_step": 2,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": ("power=2",),
        "min_lr": 1e-4,
        "warmup_ratio": 0.5,
        "save_dtype": "bfloat16",  # so that checkpoints alone hold the frozen parameters to the bit
    },
    "adapter": {
        "optim": "muon",
        "lora_r": 4,
        "use_dora": True,
        "use_rslora": True,
        "lora_modules_to_save": ("lm_head",),
        "beta": 0.1,
        "learning_rate": 1e-2,
    },
    "8bit": EIGHT_BITS | {"loss_type": "grpo"},
    "4bit": {
        "dtype": "float32",
        "load_in_4bit": True,
        "lora_save": "adapter",
        "lora_r": 4,
        "learning_rate": 1e-2,
    },
}


SHORT = {
    "max_steps": 3,
    "save_steps": 1,
    "prompts_per_step": 2,
    "num_iterations": 1,
    "log_completions": 2,
}
RESUMED_ON_RANKS = ("whole", "8bit")  # the other jobs' state is sharded as AdamW's


def run_jobs(directory: Path, layout: str, cut: str, jobs: Iterable[str], world: World = ALONE) -> None:
    """Leaves a run JOB in the layout's directory for each job, and where it matters one JOB-resumed."""
    for job in jobs:
        output = directory / layout / job
        settings = JOBS[job] | CUTS[cut] | SHORT
        settings["micro_batch_tokens"] = 120 if "micro_batch_tokens" in settings else 8192
        starts = {output: ""}
        if world.size == 1 or job in RESUMED_ON_RANKS:
            starts[directory / layout / f"{job}-resumed"] = str(output / "checkpoint-2")
        for name, resumed in starts.items():
            config = tiny_config(directory, **settings, output_dir=str(name), resume_from_checkpoint=resumed)
            run = start(config, world)
            train(run)
            run.close()


def main(directory: Path, layout: str, cut: str, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    logging.disable()
    quick_reports.none()
    with joined_world(timeout=120) as world:
        run_jobs(directory, layout, cut, jobs, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
    end_process(0)
