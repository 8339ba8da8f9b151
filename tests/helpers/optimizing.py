"""Among ranks, or alone: runs with the options of docs/en/optimizing.md, and each once more from its second step.

python -m helpers.optimizing DIR LAYOUT CUT JOB...      LAYOUT: the directory's name; CUT: of helpers.ranks; JOB: of JOBS
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

import grpokit.runs.report
from grpokit.parallel import end_process, joined_world
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


def main(directory: Path, layout: str, cut: str, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    logging.disable()
    grpokit.runs.report.write_report = lambda *_, **__: "no report"
    with joined_world(timeout=120) as world:
        for job in jobs:
            output = directory / layout / job
            settings = JOBS[job] | CUTS[cut] | {"max_steps": 4, "log_completions": 2, "save_steps": 2}
            settings["micro_batch_tokens"] = 120 if "micro_batch_tokens" in settings else 8192
            for name, resumed in (
                (output, ""),
                (directory / layout / f"{job}-resumed", output / "checkpoint-2"),
            ):
                config = tiny_config(
                    directory, **settings, output_dir=str(name), resume_from_checkpoint=str(resumed)
                )
                run = start(config, world)
                train(run)
                run.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
    end_process(0)
