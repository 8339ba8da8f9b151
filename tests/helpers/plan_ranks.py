"""Among ranks: one step of learning in each case, with the memory that a rank holds and the bytes that it receives.

torchrun --nproc-per-node 2 -m helpers.plan_ranks DIR         DIR/model is there; writes DIR/RANKS-CASE-RANK.json
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from grpokit.batch.advantages import add_advantages
from grpokit.batch.plan import plan_step
from grpokit.config.options import PlanConfig
from grpokit.parallel import World, joined_world, unsharded
from grpokit.policy.learn import Learning, StepProgress, learn
from grpokit.policy.optimizer import make_optimizer
from grpokit.policy.policy import Policy
from grpokit.training.setup.loss import loss_from_config
from grpokit.training.setup.models import load_models
from helpers.tiny import group_of

PROMPT, COMPLETION = 2, 14  # tokens of each prompt and completion
BASE = {
    "device": "cpu",
    "dtype": "float32",
    "loss_type": "dapo",
    "prompts_per_step": 4,
    "num_generations": 4,
    "prompt_tokens": PROMPT,
    "max_completion_length": COMPLETION,
    "micro_batch_tokens": 20,
}
CASES: dict[str, dict] = {
    "plain": {},
    "bfloat16": {"dtype": "bfloat16"},
    "recomputed": {"gradient_checkpointing": True},
    "reference": {"beta": 0.1, "num_iterations": 2},
    "updates": {"updates_per_step": 2, "num_iterations": 2},
    "coupled": {"loss_type": "clip_cov", "loss_kwargs": ("cov_low=0.001", "cov_high=1e9", "cov_ratio=0.3")},
    "lora": {"lora_r": 8, "beta": 0.1, "dtype": "bfloat16"},
    "hybrid": {"shard_size": 2},
}


def count_bytes(received: Counter) -> None:
    """Add what each of FSDP2's collectives brings to this rank to `received`, by kind."""
    renamed = hasattr(dist, "all_gather_single")  # newer versions of torch have a new name for the same

    def counting(kind: str, name: str, share: Callable[[int], float], position: int, keyword: str) -> None:
        original = getattr(dist, name)

        def counted(*args, **kwargs):
            tensor = kwargs[keyword] if keyword in kwargs else args[position]
            if tensor.numel() > 1:  # scalars aren't planned
                received[kind] += tensor.nbytes * share(dist.get_world_size(kwargs.get("group")))
            return original(*args, **kwargs)

        setattr(dist, name, counted)

    gather, scatter = (
        ("all_gather_single", "reduce_scatter_single")
        if renamed
        else ("all_gather_into_tensor", "reduce_scatter_tensor")
    )
    counting("gather", gather, lambda n: (n - 1) / n, 0, "output_tensor")
    counting("scatter", scatter, lambda n: (n - 1) / n, 1, "input")
    counting("add up", "all_reduce", lambda n: 2 * (n - 1) / n, 0, "tensor")


def run(config: PlanConfig, world: World, received: Counter) -> dict:
    policy, reference = load_models(config, None, world)
    optimizer = make_optimizer(policy, config)
    loss = loss_from_config(config)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(config.prompts_per_step, config.num_generations, generator=generator).tolist()
    groups = [group_of(row, [COMPLETION] * len(row), position) for position, row in enumerate(rewards)]
    updates = plan_step(add_advantages(groups), loss, config.updates_per_step, world.size)
    how = Learning(
        num_iterations=config.num_iterations,
        micro_batch_tokens=config.micro_batch_tokens,
        drop_dead_rows=False,
        world=world,
    )
    for _ in range(2):  # the first backward after a load prefetches a layer too many
        received.clear()
        with (
            unsharded(policy),
            torch.inference_mode(),
            policy.computing(),
        ):  # what a sampler does, once in a step
            policy.model(torch.zeros(1, PROMPT, dtype=torch.int64))
        learn(policy, reference, StepProgress(list(updates), groups), loss, optimizer, how)
    moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    return {
        "received": dict(received),
        "parameters": held(policy.parameters()),
        "gradients": held(p.grad for p in policy.parameters() if p.requires_grad),
        "moments": held(moments),
        "reference": held(reference.parameters()) if isinstance(reference, Policy) else 0,
    }


def held(tensors) -> int:
    """Bytes of the storages behind (sharded) tensors, padding included."""
    return sum(t.to_local().untyped_storage().nbytes() for t in tensors)


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    logging.disable()
    with joined_world(timeout=120) as world:
        received: Counter = Counter()
        count_bytes(received)
        for name, changes in CASES.items():
            if name == "hybrid" and world.size == 2:
                continue
            config = PlanConfig(model=str(directory / "model"), ranks=world.size, **(BASE | changes))
            found = run(config, world, received)
            (directory / f"{world.size}-{name}-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
