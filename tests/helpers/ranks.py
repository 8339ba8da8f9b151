"""Among ranks, or alone: trains each loss in each cut, one run after the other, and leaves the runs in a directory.

python -m helpers.ranks DIR LAYOUT LOSS...            LAYOUT: the directory's name; LOSS: of LOSSES, each in all cuts of cuts_of()
torchrun --nproc-per-node 2 -m helpers.ranks DIR LAYOUT LOSS...
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from grpokit.parallel import end_process, joined_world
from helpers import quick_reports
from helpers.places import REWARDS
from helpers.running import start, train
from helpers.tiny import tiny_config

LOSSES: dict[str, dict] = {
    "grpo": {"beta": 0.04},
    "bnpo": {"reward_funcs": (f"{REWARDS}:digits_in_order_logged",)},
    "dapo": {"updates_per_step": 2, "eval_steps": 2, "eval_samples": 3, "eval_generations": 2},
    "dr_grpo": {"advantage_estimator": "remax"},
    "cispo": {
        "entropy_coef": 0.01,
        "teacher_coef": 0.5,
        "advantage_estimator": f"{REWARDS}:later_tokens_more",
    },
    "sapo": {"advantage_estimator": "loo_std"},
    "gspo": {"correction_mode": "truncate", "advantage_estimator": "reinforce_plus_plus_global"},
    "clip_cov": {
        "advantage_estimator": "gpg",
        "loss_kwargs": ("cov_low=0.001", "cov_high=1e9", "cov_ratio=0.3"),
    },
    "fipo": {"top_entropy_quantile": 0.5},
    "lora": {"loss_type": "dapo", "lora_r": 4, "beta": 0.04, "learning_rate": 1e-2, "updates_per_step": 2},
}
CUTS = {
    "padded-10000": {"share_prompts": "never"},
    "padded-60": {"share_prompts": "never", "micro_batch_tokens": 60},
    "packed-60": {"share_prompts": "never", "micro_batch_tokens": 60, "packing": "packed"},
    "shared-60": {"share_prompts": "always", "micro_batch_tokens": 60},
}
STEPS = 4
# On four ranks: losses of tokens, of sequences and of a whole update, an adapter, and two forms of the batch.
ON_FOUR = ("bnpo", "dapo", "gspo", "clip_cov", "lora")
CUTS_ON_FOUR = ("padded-60", "shared-60")
SHARDS = {  # of four ranks
    "hybrid": {"shard_size": 2, "share_prompts": "always"},
    "recomputed": {"gradient_checkpointing": True},
}


def losses_of(ranks: int) -> tuple[str, ...]:
    """The losses that are trained on so many ranks."""
    return tuple(LOSSES) if ranks < 4 else ON_FOUR


def cuts_of(ranks: int) -> tuple[str, ...]:
    """The cuts of each of them."""
    return tuple(CUTS) if ranks < 4 else CUTS_ON_FOUR


def main(directory: Path, layout: str, losses: list[str]) -> None:
    torch.set_num_threads(1)
    logging.disable()
    quick_reports.none()
    with joined_world(timeout=120) as world:
        jobs = [(loss, cut) for loss in losses for cut in cuts_of(world.size)]
        if world.size == 4 and "dapo" in losses:
            jobs += [("dapo", shard) for shard in SHARDS]
        for loss, cut in jobs:
            held_out = (
                {"eval_dataset": str(directory / "train.jsonl")} if "eval_steps" in LOSSES[loss] else {}
            )
            output = str(directory / layout / f"{loss}-{cut}")
            settings = {"loss_type": loss, "output_dir": output, "max_steps": STEPS, "log_completions": 2}
            if "teacher_coef" in LOSSES[loss]:
                settings["teacher"] = (str(directory / "model"),)
            settings |= held_out | LOSSES[loss] | (CUTS | SHARDS)[cut]
            config = tiny_config(directory, **settings)
            run = start(config, world)
            train(run)
            run.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    end_process(0)
