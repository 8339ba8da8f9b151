"""`grpokit replay`: runs a dumped micro-batch again and shows where its numbers go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from ..batch.collate import collate
from ..common.console import console, say
from ..config.commands import ReplayConfig
from ..losses import Loss
from ..parallel import default_device
from ..policy.load import load_policy
from ..policy.policy import Policy
from ..runs.checkpoint import checkpoints, read_record
from ..runs.dumps import Dump, read_offender
from ..runs.exact import PARAMETERS, restore_exact
from ..training.setup.loss import lora_from_config


def weights_for(dumped: Dump, file: Path, model: str) -> tuple[Path, str]:
    """Finds the weights to replay with, and says how close they are to those of the moment.

    Raises:
        ValueError: there are none.
    """
    if model:
        return Path(model), "as asked for"
    found = [p for p in checkpoints(file.parent.parent) if (p / "trainer" / "state.json").is_file()]
    version = {path: read_record(path)["policy_version"] for path in found}
    exact = [path for path in found if version[path] == dumped.policy_version]
    if exact:
        return exact[-1], "the very weights of that moment"
    older = [path for path in found if version[path] < dumped.policy_version]
    if older:
        return older[-1], "OLDER than that moment: no checkpoint of it was written"
    if dumped.policy_version == 0 and Path(dumped.config.model).is_dir():
        return Path(dumped.config.model), "the initial model: nothing had been trained yet"
    raise ValueError(
        f"{file}: no checkpoint from before it in {file.parent.parent}; name weights with --model"
    )


def replay(config: ReplayConfig, loss_of: Any) -> bool:
    """Runs a dumped micro-batch again and shows the first number that goes wrong. Returns whether one did."""
    file = Path(config.file)
    dumped = read_offender(file)
    weights, how_near = weights_for(dumped, file, config.model)
    c = dumped.config
    say(
        f"{file}: {dumped.what} not finite after {dumped.policy_version} optimizer steps (step {dumped.step + 1})"
    )
    say(f"weights: {weights} ({how_near})")
    # An adapter is in trainer/, and needs its base model. Any other directory is loaded as it is.
    beside = (weights / "trainer" / PARAMETERS).is_file() or weights == Path(c.model)
    lora = lora_from_config(c) if beside else None
    policy = load_policy(
        str(weights) if lora is None else c.model,
        dtype=config.dtype or c.dtype,
        temperature=c.temperature,
        device=default_device(),
        attn_implementation=c.attn_implementation,
        trust_remote_code=c.trust_remote_code,
        lora=lora,
        probe=False,  # the replay is about weights that may be wrong
    )
    restore_exact(weights, policy, complete=False)
    report = run_again(policy, loss_of(c), dumped)
    console.print(report.table())
    console.print(report.verdict)
    return report.first is not None


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay."""

    first: str | None  # where the first non-finite number appeared, in the forward and then in the backward
    # The largest number of each module's output, in the order of the forward.
    largest: list[tuple[str, float]]
    loss: float
    bad_gradients: list[str]

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if self.first is None:
            return f"every number is finite here (loss {self.loss:g}): other weights, another device or another type"
        return f"the first number that is not finite: {self.first}"

    def table(self) -> Table:
        """Lists the largest numbers of the forward around the place where it goes wrong, or else the last ones."""
        table = Table("output of", "largest |x|", title="forward", title_justify="left")
        bad = [i for i, (_, value) in enumerate(self.largest) if not value < float("inf")]
        around = self.largest[max(0, bad[0] - 6) : bad[0] + 3] if bad else self.largest[-12:]
        for name, value in around:
            table.add_row(name, f"{value:.3g}", style="red" if not value < float("inf") else None)
        return table


def run_again(policy: Policy, loss: Loss, dumped: Dump) -> ReplayResult:
    """Runs forward and backward of the dumped micro-batch, and watches them."""
    whole = dumped.whole
    micro = collate(dumped.samples, dumped.layout, policy.device, whole=whole.balance is not None)
    seen: list[tuple[str, float]] = []
    with watching(policy, seen):
        scores, output = policy(micro, loss, whole.stats, balance=whole.balance)
    seen.append(("log-probs", largest(scores.logps)))
    assert output is not None
    seen.append(("loss", largest(output.loss)))
    output.loss.backward()
    grads = [(n, p.grad) for n, p in policy.named_parameters() if p.grad is not None]
    bad = [name for name, grad in grads if not torch.isfinite(grad).all()]
    first = next((f"output of {name}" for name, value in seen if not value < float("inf")), None)
    if first is None and bad:
        first = f"gradient of {bad[-1]} (of {len(bad)} parameters; the last in the forward is the first going back)"
    return ReplayResult(first, seen, float(output.loss.detach()), bad)


@contextmanager
def watching(policy: Policy, seen: list[tuple[str, float]]) -> Iterator[None]:
    """Records the largest number in the output of each innermost module."""

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.is_floating_point():
                seen.append((name, largest(first)))

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in policy.model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def largest(values: Tensor) -> float:
    """Returns max |x|; NaN if one is NaN, 0 for an empty tensor."""
    return float(values.detach().abs().amax()) if values.numel() else 0.0
