"""A mini-batch as verl's engines hand it to `ppo_loss`, on the CPU: nested tensors, cut into ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Rows of completions: their lengths, and which tokens may be trained on. Row 5 has none, row 2 has a tool's answer.
LENGTHS = (6, 3, 5, 1, 4, 2, 6, 5)
WITHOUT = {2: (1, 2), 5: (0, 1), 7: (4,)}
PROMPTS = (2, 3, 1, 4, 2, 2, 3, 1)


@dataclass(frozen=True)
class MiniBatch:
    """The tokens of one update, [B, T] padded. `logps` is the leaf that gradients are taken of."""

    mask: Tensor
    logps: Tensor
    old: Tensor
    ref: Tensor
    advantages: Tensor
    weights: Tensor  # verl's rollout_is_weights

    @classmethod
    def make(cls, seed: int = 0) -> MiniBatch:
        """Draws log-probs that have moved by about 0.3."""
        draw = torch.Generator().manual_seed(seed)
        shape = len(LENGTHS), max(LENGTHS)

        def normal(scale: float, *size: int) -> Tensor:
            return scale * torch.randn(*(size or shape), generator=draw, dtype=torch.float64)

        mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
        for row, places in WITHOUT.items():
            mask[row, list(places)] = False
        old = -normal(1.0).abs() - 0.5
        advantages = normal(1.0, shape[0], 1).expand(shape).clone()
        advantages[4] = 0
        return cls(
            mask, (old + normal(0.3)).requires_grad_(), old, old + normal(0.2), advantages, normal(0.5).exp()
        )

    @property
    def num_tokens(self) -> int:
        """The trainable tokens of the update."""
        return int(self.mask.sum())

    def data(self, rows: Sequence[int], dp_size: int, names: Sequence[str] = (), **changes: Any) -> Any:
        """The micro-batch of these rows as the engine gives it to the loss, and the model's output.

        `names`: of `rollout_is_weights` and `ref_log_prob`, those that the batch has. `changes`: of the numbers that the
        engine computes.
        """
        from verl.utils import tensordict_utils as tu

        def nested(values: Tensor) -> Tensor:
            return torch.nested.as_nested_tensor(
                [values[row, : LENGTHS[row]] for row in rows], layout=torch.jagged
            )

        def zeros(*lengths: int) -> Tensor:
            return torch.nested.as_nested_tensor(
                [torch.zeros(n, dtype=torch.long) for n in lengths], layout=torch.jagged
            )

        tensors = {
            "prompts": zeros(*(PROMPTS[row] for row in rows)),
            "responses": zeros(*(LENGTHS[row] for row in rows)),
            "response_mask": nested(self.mask.long()),
            "old_log_probs": nested(self.old),
            "advantages": nested(self.advantages),
        }
        optional = {"rollout_is_weights": self.weights, "ref_log_prob": self.ref}
        tensors |= {name: nested(optional[name]) for name in names}
        numbers = {
            "dp_size": dp_size,
            "batch_num_tokens": self.num_tokens,
            "global_batch_size": len(LENGTHS),
        }
        # The model's output has a value for each token of prompt and completion, each for the token that follows.
        parts = []
        for row in rows:
            before = torch.zeros(PROMPTS[row] - 1, dtype=torch.float64)
            parts.append(torch.cat([before, self.logps[row, : LENGTHS[row]], before.new_zeros(1)]))
        output = {"log_probs": torch.nested.as_nested_tensor(parts, layout=torch.jagged)}
        return tu.get_tensordict(tensors, numbers | changes), output


def actor_config(loss_mode: str, options: dict | None = None, *, bypass: bool = False, **fields: Any) -> Any:
    """verl's ActorConfig. `options`: those of grpokit's loss. `bypass`: old_log_probs are the sampler's."""
    from verl.trainer.config import RolloutCorrectionConfig
    from verl.workers.config import ActorConfig

    from grpokit.integrations.verl import PolicyLossConfig

    correction = RolloutCorrectionConfig(bypass_mode=bypass)
    policy_loss = PolicyLossConfig(loss_mode=loss_mode, grpokit=options or {}, rollout_correction=correction)
    own = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1, "loss_scale_factor": 7}
    return ActorConfig(policy_loss=policy_loss, **(own | fields))


def run_update(
    batch: MiniBatch,
    config: Any,
    micro_batches: int = 1,
    dp_size: int = 1,
    names: Sequence[str] = (),
    **changes: Any,
) -> tuple[Tensor, float, list[dict[str, Any]]]:
    """The gradient of an update as verl's engine takes it, its loss, and the metrics of each micro-batch.

    Each rank sums the gradients of its micro-batches; then they are averaged over the ranks.
    """
    from verl.workers.utils.losses import ppo_loss

    batch.logps.grad = None
    share, metrics = len(LENGTHS) // (dp_size * micro_batches), []
    for first in range(0, len(LENGTHS), share):
        data, output = batch.data(range(first, first + share), dp_size, names, **changes)
        loss, found = ppo_loss(config, output, data)
        loss.backward()
        metrics.append(found)
    assert batch.logps.grad is not None
    total = sum(found["actor/pg_loss"].aggregate() for found in metrics) / dp_size
    return batch.logps.grad / dp_size, total, metrics
