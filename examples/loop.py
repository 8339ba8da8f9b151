"""GRPO written out: what a training step is, top to bottom, with the library's pieces and no trainer.

    grpokit task sort_digits --output_dir runs/demo-task
    python examples/loop.py --model runs/demo-task/model --dataset runs/demo-task/train.jsonl

Letters: P prompts, G completions of each, B = P·G sequences, T tokens of a completion, N trainable tokens of a
micro-batch, V vocabulary, H hidden size. The head turns hidden states [N, H] into log-probs [N]; no [N, V] is kept.
`grpokit.training.loop` is the same journey with checkpoints, evaluation, many ranks and every option.
"""

from __future__ import annotations

import argparse

import torch

from grpokit.batch.advantages import add_advantages
from grpokit.batch.collate import collate
from grpokit.batch.cuts import cut_samples
from grpokit.batch.plan import plan_step
from grpokit.data.prompts import Prompts
from grpokit.data.rows import read_rows
from grpokit.losses import make_loss
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.rewards import Reward, score
from grpokit.rollouts.transformers import TransformersSampler


def exact(completions: list[str], answer: list[str], **columns: list) -> list[float]:
    """1 for the right answer, else 0. Lists of B, one entry per completion; `answer` is a column of the dataset."""
    return [float(completion.strip() == right) for completion, right in zip(completions, answer, strict=True)]


def main() -> None:
    """Trains for --steps steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a directory of a causal language model")
    parser.add_argument("--dataset", required=True, help="a file of rows with the columns prompt and answer")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32, help="P")
    parser.add_argument("--generations", type=int, default=8, help="G")
    args = parser.parse_args()
    P, G = args.prompts, args.generations

    # What is made once: the model, its tokenizer, the data, the reward, the sampler, the loss, the optimizer.
    torch.set_num_threads(1)  # the fastest for a model this small
    policy = load_policy(args.model, dtype="float32", temperature=1.0, device=torch.device("cpu"))
    tokenizer = load_tokenizer(args.model)
    rows, _ = read_rows(args.dataset)
    prompts = Prompts(rows, tokenizer, seed=42)  # an endless order, shuffled anew for each epoch
    rewards = [Reward("exact", exact)]
    sampler = TransformersSampler(policy, tokenizer, seed=42, max_completion_length=7)
    loss = make_loss("dapo")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=6e-4, betas=(0.9, 0.95))

    for step in range(args.steps):
        # 1. Sample: P prompts → P groups of G completions, with the log-probs they were sampled with.
        batch = prompts.take(step * P, P)
        groups = sampler.sample(batch, G)  # a rollout has completion_ids [T], logps [T]

        # 2. Score each completion, and compare it with its group. No advantage, no signal: all equal gives zeros.
        groups = score(groups, rewards)  # a group has reward [G]
        groups = add_advantages(groups, "group", loss.scale_rewards)  # and advantages [G]

        # 3. Plan: one sample per completion. Its weight w_i is fixed here, for the whole update, before any cut.
        [update] = plan_step(groups, loss)  # B samples

        # 4. Learn: cut the update into forwards that fit in memory. Their shares of the loss add up, so nothing is divided
        #    by the number of cuts, and another budget gives the same gradient.
        policy.train()
        optimizer.zero_grad()
        total = 0.0
        cut = cut_samples(update.samples, budget=8192)
        for samples in cut.parts[0]:  # the forwards of rank 0, the only one
            micro = collate(samples, cut.layout, policy.device)  # targets, advantages, weights: [N] each
            _, output = policy(micro, loss)  # log-probs [N] → output.loss, a scalar
            output.loss.backward()
            total += output.loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

        # 5. The sampler uses the new weights from the next step on. This one shares them; another engine copies them here.
        policy.version += 1
        sampler.sync()
        reward = torch.stack([group.reward for group in groups]).mean()  # [P, G] → scalar
        print(f"step {step + 1}: reward {reward:.3f}, loss {total:+.4f}, {update.num_tokens} tokens")


if __name__ == "__main__":
    main()
