"""Seconds per step and phase, and tokens per second, of a GRPO step on a given model and shape. Prints JSON.

    python benchmarks/step.py --model runs/demo-task/model --prompts 32 --generations 8 --completion_tokens 7
    python benchmarks/step.py --help

Prompts are random tokens and rewards are drawn by a fixed seed, so that every group has a spread and every
completion its full length: the time is that of the machinery, not of a task. Each figure is the median over
`--steps` steps after `--warmup` ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics

import torch

from grpokit.advantages import with_advantages
from grpokit.batching import plan_step
from grpokit.losses import loss_options, make_loss
from grpokit.metrics import Clock
from grpokit.model import default_device, load_policy, load_tokenizer
from grpokit.rewards import Reward, score
from grpokit.rollouts.transformers import TransformersSampler
from grpokit.step import Learning, Progress, learn
from grpokit.types import Prompt


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a Hugging Face model directory")
    parser.add_argument("--loss_type", default="dapo")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=8)
    parser.add_argument("--completion_tokens", type=int, default=64)
    parser.add_argument("--num_iterations", type=int, default=1)
    parser.add_argument("--micro_batch_tokens", type=int, default=8192)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num_threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    device = default_device()
    policy = load_policy(args.model, dtype=args.dtype, temperature=1.0, device=device)
    sampler = TransformersSampler(
        policy,
        load_tokenizer(args.model),
        seed=0,
        max_completion_length=args.completion_tokens,
        min_completion_length=args.completion_tokens,  # every completion has its full length
    )
    length = {"max_completion_length": args.completion_tokens}
    loss = make_loss(
        args.loss_type, **(length if "max_completion_length" in loss_options(args.loss_type) else {})
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    how = Learning(num_iterations=args.num_iterations, micro_batch_tokens=args.micro_batch_tokens)
    noise = torch.Generator().manual_seed(0)
    rewards = (Reward("random", lambda completions: torch.rand(len(completions), generator=noise).tolist()),)
    vocabulary = policy.model.config.get_text_config().vocab_size

    clocks = []
    for step in range(args.warmup + args.steps):
        ids = torch.randint(vocabulary, (args.prompts, args.prompt_tokens), generator=noise).tolist()
        prompts = [
            Prompt(step * args.prompts + p, tuple(row), "", {}, "random:1") for p, row in enumerate(ids)
        ]
        clock = Clock()
        with clock("step"):
            with clock("rollout"):
                groups = sampler.sample(prompts, args.generations)
            with clock("reward"):
                groups = with_advantages(score(groups, rewards))
            with clock("learn"):
                learn(policy, None, Progress(plan_step(groups, loss)), loss, optimizer, how)
            with clock("sync"):
                sampler.sync()
        clocks.append(clock.seconds)

    def median(phase: str) -> float:
        return statistics.median(seconds[phase] for seconds in clocks[args.warmup :])

    tokens = args.prompts * args.generations * args.completion_tokens
    print(
        json.dumps(
            {
                "shape": vars(args),
                "parameters": sum(p.numel() for p in policy.parameters()),
                "machine": {
                    "device": str(device),
                    "processor": platform.machine(),
                    "threads": torch.get_num_threads(),
                },
                "torch": torch.__version__,
                "seconds": {
                    phase: round(median(phase), 5) for phase in ("step", "rollout", "reward", "learn", "sync")
                },
                "tokens_per_second": round(tokens / median("step"), 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
