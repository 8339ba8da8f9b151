"""`grpokit compare-batch`: one recorded batch through any set of losses, and how far their gradients agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..losses import LOSSES, Loss, LossBatch, UpdateStats, loss_options, make_loss, policy_loss
from ..runs.batches import batch_for, read_batch


@dataclass(frozen=True, eq=False)
class Comparison:
    """The effect of one loss on the batch."""

    loss: Loss
    value: float
    gradient: Tensor  # [N], with respect to logp
    ess: float  # effective sample size of its ratios, as a share of the live tokens
    refused: str = ""  # why it cannot be computed on this batch

    @property
    def norm(self) -> float:
        """The gradient's norm."""
        return float(self.gradient.norm())

    @property
    def zero_share(self) -> float:
        """The share of tokens without gradient."""
        return float((self.gradient == 0).double().mean())


def compare(
    path: str | Path, names: Sequence[str] = (), max_completion_length: int | None = None
) -> list[Comparison]:
    """Computes the losses on a recorded batch.

    Args:
        path: the batch's file.
        names: names of LOSSES; none: the whole table.
        max_completion_length: L_max, for losses that need it; None: the longest sequence.

    Returns:
        One comparison per loss. If the batch lacks something (the sampler's log-probs, groups), `refused` says so.

    Raises:
        ValueError: an unknown loss, or a file that cannot be read.
    """
    fields = read_batch(path)
    longest = int(torch.bincount(fields["sequence_ids"].long()).max())
    losses = []
    for name in names or LOSSES:
        takes_length = "max_completion_length" in loss_options(name)
        length = (max_completion_length or longest) if takes_length else None
        losses.append(make_loss(name, max_completion_length=length))
    return [_one(loss, fields) for loss in losses]


def _one(loss: Loss, fields: Mapping[str, Tensor]) -> Comparison:
    nothing = torch.zeros(len(fields["logps"]), dtype=torch.float64)
    try:
        batch = batch_for(loss, fields)
        logps = batch.logps.clone().requires_grad_()
        batch = dataclasses.replace(batch, logps=logps)
        stats = UpdateStats.of(loss, batch).finish(loss) if loss.coupling != "token" else None
        out = policy_loss(loss, batch, stats)
    except ValueError as error:
        return Comparison(loss, float("nan"), nothing, float("nan"), refused=str(error))
    out.loss.backward()
    gradient = nothing if logps.grad is None else logps.grad
    return Comparison(loss, float(out.loss.detach()), gradient, out.metrics["ratio/ess"].value)


def cosines(found: Sequence[Comparison]) -> Tensor:
    """Returns the cosines [L, L] between the losses' gradients; NaN for one without gradient."""
    stacked = torch.stack([c.gradient for c in found])
    unit = stacked / stacked.norm(dim=-1, keepdim=True)
    return unit @ unit.T


def weight_by_length(batch: LossBatch, gradient: Tensor, bins: int = 4) -> list[tuple[int, int, float]]:
    """Returns (shortest, longest, share of Σ|gradient|) for quantiles of the sequences' lengths."""
    assert batch.lengths is not None
    ids, index = batch.sequence_ids.unique(return_inverse=True)
    lengths = torch.zeros(len(ids), dtype=torch.int64).scatter_(0, index, batch.lengths)
    pull = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, index, gradient.abs())
    order = lengths.argsort(stable=True)
    total = float(pull.sum())
    return [
        (int(lengths[part[0]]), int(lengths[part[-1]]), float(pull[part].sum()) / total if total else 0.0)
        for part in order.tensor_split(bins)
        if len(part)
    ]


def print_comparison(
    path: str | Path, names: Sequence[str], output: str, max_completion_length: int | None
) -> None:
    """Prints the tables, and writes the plot to `output` if it is given.

    Args:
        path: the batch's file.
        names: names of LOSSES; none: the whole table.
        output: the plot's file, or "".
        max_completion_length: L_max, for losses that need it; None: the longest sequence.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    from ..common.console import console, say

    found = compare(path, names, max_completion_length)
    fields = read_batch(path)
    done = [c for c in found if not c.refused]
    sequences = len(fields["sequence_ids"].unique())
    title = f"{path}: {len(fields['logps'])} tokens of {sequences} sequences"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    first = done[0].loss.name if done else ""
    quartiles = weight_by_length(batch_for(done[0].loss, fields), done[0].gradient) if done else []
    heads = ["loss_type", "loss", "‖g‖", "cosine", "zero", "ESS"]
    for head in [*heads, *(f"{low}–{high}" if low != high else f"{low}" for low, high, _ in quartiles)]:
        table.add_column(head, justify="left" if head == "loss_type" else "right", no_wrap=True)
    cosine = cosines(done) if done else None
    for row, c in enumerate(done):
        shares = [f"{share:.0%}" for *_, share in weight_by_length(batch_for(c.loss, fields), c.gradient)]
        similar = "" if cosine is None else f"{float(cosine[0, row]):.2f}"
        table.add_row(
            c.loss.name,
            f"{c.value:.3g}",
            f"{c.norm:.3g}",
            similar,
            f"{c.zero_share:.0%}",
            f"{c.ess:.0%}",
            *shares,
        )
    console.print(table)
    say(
        f"‖g‖: norm of the gradient g with respect to logp. cosine: of g with that of {first}. zero: tokens without gradient."
    )
    say("a–b: share of Σ|gradient| that the sequences of a to b tokens have")
    for c in found:
        if c.refused:
            say(f"{c.loss.name}: left out: {c.refused}")
    if output:
        say(f"plot: {plot(done, fields, Path(output))}")


def plot(found: Sequence[Comparison], fields: Mapping[str, Tensor], output: Path) -> Path:
    """Draws the cosines between all losses, and the gradient's share by completion length. Returns `output`."""
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--output {output}: expected a name ending in .png, .svg or .pdf")
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [c.loss.name for c in found]
    size = max(4.0, 0.42 * len(names))
    figure, (left, right) = plt.subplots(1, 2, figsize=(1.7 * size + 2.5, size), layout="constrained")
    image = left.imshow(cosines(found).numpy(), vmin=-1, vmax=1, cmap="PuOr")
    left.set_xticks(range(len(names)), names, rotation=60, ha="right")
    left.set_yticks(range(len(names)), names)
    for (y, x), value in np.ndenumerate(cosines(found).numpy()):
        left.text(
            x,
            y,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if abs(value) > 0.6 else "black",
        )
    left.set_title("cosine between gradients", loc="left")
    figure.colorbar(image, ax=left, shrink=0.8)
    starts = [0.0] * len(names)
    parts = [weight_by_length(batch_for(c.loss, fields), c.gradient) for c in found]
    colours = matplotlib.colormaps["cividis"]
    for k, (low, high, _) in enumerate(parts[0] if parts else []):
        shares = [part[k][2] for part in parts]
        right.barh(
            names,
            shares,
            left=starts,
            color=colours(k / 3.5),
            label=f"{low}–{high}" if low != high else f"{low}",
        )
        starts = [s + share for s, share in zip(starts, shares, strict=True)]
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xlim(0, 1)
    right.set_title("share of the gradient by completion length", loc="left")
    right.legend(title="tokens", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.06), frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=160)
    plt.close(figure)
    return output
