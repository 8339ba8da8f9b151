"""Shared by the head's benchmarks: the same work for every method, interleaved timing, peak memory, tables, plots."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from grpokit.logprobs import Head, family_loss, linear_policy_loss
from grpokit.logprobs.chunks import default_chunk_tokens
from grpokit.losses import LossBatch, make_loss

EPSILON, EPSILON_HIGH = 0.2, 0.28
HOW_TO_INSTALL = "pip install -e '.[bench]'"
MIB = 2**20
LABELS = {
    "ours": "grpokit",
    "matmuls": "three matmuls",
    "full": "full logits",
    "trl": "TRL, chunked",
    "trl_lean": "TRL, no entropy",
    "liger": "Liger, chunked",
}
COLOURS = {
    "ours": "#1b6ca8",
    "matmuls": "#9aa5b1",
    "full": "#d9a441",
    "trl": "#c2583f",
    "trl_lean": "#d99a88",
    "liger": "#6f8f5f",
}


class Missing(Exception):
    """A competitor that cannot be imported. The message says which, and how to install it."""


# --------------------------------------------------------------------------- the work


@dataclass
class Work:
    """Tokens [B, T] of one update of the GRPO-clip loss, the mean over all tokens (dapo)."""

    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [B, T]
    old_logps: Tensor  # [B, T] close to the policy's, so that some ratios are clipped
    advantages: Tensor  # [B]

    def clear(self) -> None:
        """Deletes the gradients."""
        self.hidden.grad = self.weight.grad = None


def make_work(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str, old_logps: bool = True
) -> Work:
    """Makes N tokens in sequences of 64 or fewer. Without `old_logps` those are made up, which will do for memory."""
    g = torch.Generator().manual_seed(0)
    length = next(n for n in (64, 32, 16, 8, 4, 2, 1) if tokens % n == 0)
    hidden = torch.randn(tokens // length, length, width, generator=g).to(device, dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=g).mul_(width**-0.5).to(device, dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens // length, length), generator=g).to(device)
    noise = 0.2 * torch.randn(targets.shape, generator=g).to(device)
    advantages = torch.randn(len(targets), generator=g).to(device)
    work = Work(hidden, weight, targets, noise - 8, advantages)
    if old_logps:
        with torch.no_grad():
            logits = hidden.flatten(0, 1).float() @ weight.float().T
            work.old_logps = noise - F.cross_entropy(logits, targets.flatten(), reduction="none").view_as(
                noise
            )
    return work


def clip_loss(logps: Tensor, work: Work) -> Tensor:
    """Computes the same loss in five lines, for methods that give log-probs [B, T]."""
    ratio = (logps - work.old_logps).exp()
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON_HIGH)
    advantages = work.advantages[:, None]
    return -torch.min(ratio * advantages, clipped * advantages).mean()


# --------------------------------------------------------------------------- the methods: each runs forward and backward


def ours(work: Work) -> Tensor:
    """Runs `linear_policy_loss` with `dapo`."""
    n, shape = work.targets.numel(), work.targets.shape
    batch = LossBatch(
        logps=work.old_logps.flatten(),
        old_logps=work.old_logps.flatten(),
        advantages=work.advantages[:, None].expand(shape).flatten(),
        weights=torch.full((n,), 1 / n, device=work.hidden.device),
        sequence_ids=torch.arange(shape[0], device=work.hidden.device).repeat_interleave(shape[1]),
    )
    loss = make_loss("dapo", epsilon=EPSILON, epsilon_high=EPSILON_HIGH)
    out = linear_policy_loss(
        work.hidden.flatten(0, 1),
        Head(work.weight),
        work.targets.flatten(),
        family_loss(loss, batch.unscored()),
    )
    out.loss.backward()
    return out.loss.detach()


def matmuls(work: Work) -> None:
    """Runs only logits = H·Wᵀ, dH = logits·W, dW = logitsᵀ·H, chunk by chunk as in `ours`."""
    hidden, weight = work.hidden.detach().flatten(0, 1), work.weight.detach()
    n = len(hidden)
    chunk = min(n, default_chunk_tokens(len(weight), torch.float32, hidden.device))
    wide = {} if weight.dtype == torch.float32 else {"out_dtype": torch.float32}
    logits = hidden.new_empty(chunk, len(weight), dtype=torch.float32)
    d_hidden = hidden.new_empty(hidden.shape, dtype=torch.float32)
    d_weight = hidden.new_empty(weight.shape, dtype=torch.float32)
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        part = torch.mm(hidden[rows], weight.t(), out=logits[: len(hidden[rows])], **wide).to(weight.dtype)
        torch.mm(part, weight, out=d_hidden[rows], **wide)
        torch.addmm(d_weight, part.t(), hidden[rows], beta=float(start > 0), out=d_weight, **wide)


def full(work: Work) -> Tensor:
    """Computes all logits at once, in float32, with autograd."""
    logits = F.linear(work.hidden, work.weight).float()
    logps = torch.log_softmax(logits, -1).gather(-1, work.targets[..., None])[..., 0]
    loss = clip_loss(logps, work)
    loss.backward()
    return loss.detach()


def trl_logps(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool = True) -> Tensor:
    """Computes log-probs [N] as TRL's GRPOTrainer does, in its chunks. It always asks for the entropies too."""
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE
    except ImportError as error:
        raise Missing(f"TRL cannot be imported ({error}); {HOW_TO_INSTALL}") from error
    outputs = ("log_probs", "entropy") if entropy else ("log_probs",)
    return ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs
    )[0]


def trl(work: Work, entropy: bool = True) -> Tensor:
    """Computes the loss of TRL's chunked log-probs."""
    logps = trl_logps(work.hidden.flatten(0, 1), work.weight, work.targets.flatten(), entropy)
    loss = clip_loss(logps.view_as(work.targets), work)
    loss.backward()
    return loss.detach()


def liger(work: Work) -> Tensor:
    """Runs Liger's fused linear GRPO loss. Its loss arithmetic, on [N], is not compiled, which makes no difference here."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as error:
        raise Missing(f"Liger cannot be imported ({error}); {HOW_TO_INSTALL}") from error
    loss_fn = LigerFusedLinearGRPOLoss(
        beta=0.0,
        compiled=False,
        use_ref_model=False,
        epsilon_low=EPSILON,
        epsilon_high=EPSILON_HIGH,
        loss_type="dapo",
    )
    loss, _ = loss_fn(
        work.hidden,
        work.weight,
        work.targets,
        torch.ones_like(work.old_logps),
        work.advantages,
        old_per_token_logps=work.old_logps,
        num_items_in_batch=work.targets.numel(),
    )
    loss.backward()
    return loss.detach()


METHODS: dict[str, Callable[[Work], Tensor | None]] = {
    "ours": ours,
    "matmuls": matmuls,
    "full": full,
    "trl": trl,
    "trl_lean": lambda work: trl(work, entropy=False),
    "liger": liger,
}


def usable(names: Sequence[str], device: str) -> tuple[list[str], list[str]]:
    """Runs each method once on a tiny input, as a warm-up. Returns those that run, and why the others do not."""
    found, missing = [], []
    for name in names:
        try:
            METHODS[name](make_work(8, 16, 64, torch.float32, device))
            found.append(name)
        except Missing as error:
            missing.append(str(error))
    return found, missing


def check_equal(names: Sequence[str], work: Work, tolerance: float = 1e-4) -> dict[str, float]:
    """Returns each method's largest relative difference to the full logits' loss and gradients; ends if it is too large."""
    work.clear()
    loss = full(work)
    want = [loss, work.hidden.grad, work.weight.grad]
    differences = {}
    for name in names:
        if name in ("matmuls", "full"):
            continue
        work.clear()
        got = [METHODS[name](work), work.hidden.grad, work.weight.grad]
        gap = max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))
        if not gap < tolerance:
            raise SystemExit(f"{name}: its loss or gradient differs from the full logits' by {gap:.1e}")
        differences[name] = gap
    work.clear()
    return differences


# --------------------------------------------------------------------------- measuring


def interleaved(names: Sequence[str], work: Work, rounds: int) -> dict[str, list[float]]:
    """Times each method once in every round, so that a slow minute affects all of them. Returns seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for k in range(len(names)):
            name = names[(k + turn) % len(names)]
            work.clear()
            synchronize(work)
            start = time.perf_counter()
            METHODS[name](work)
            synchronize(work)
            seconds[name].append(time.perf_counter() - start)
    work.clear()
    return seconds


def synchronize(work: Work) -> None:
    """Waits for a GPU."""
    if work.hidden.is_cuda:
        torch.cuda.synchronize()


def ratio(seconds: Mapping[str, Sequence[float]], other: str) -> float | None:
    """Returns the median over the rounds of ours / theirs; None without theirs."""
    if other not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds["ours"], seconds[other], strict=True))


def peak_here(name: str, work: Work) -> float:
    """Returns the method's peak memory in MiB above the inputs, gradients included.

    On a CPU it is the process's high-water mark of resident memory (VmHWM), reset before. So each method needs a fresh
    process, in which no earlier one has left memory. On a GPU it is the allocator's peak.
    """
    if work.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        METHODS[name](work)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    METHODS[name](work)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])  # KiB


def peak(name: str, tokens: int, width: int, vocabulary: int, dtype: str, device: str, threads: int) -> float:
    """Runs `peak_here` in a fresh process."""
    code = (
        "import sys, json, torch; from common import *; name, n, h, v, dtype, device, threads = json.loads(sys.argv[1])\n"
        "torch.set_num_threads(threads); usable([name], device)\n"
        "print(peak_here(name, make_work(n, h, v, getattr(torch, dtype), device, old_logps=False)))"
    )
    given = json.dumps([name, tokens, width, vocabulary, dtype, device, threads])
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", code, given],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise SystemExit(found.stderr)
    return float(found.stdout.splitlines()[-1])


# --------------------------------------------------------------------------- arguments, output


def arguments(doc: str, **defaults: int) -> argparse.ArgumentParser:
    """Makes the options that all benchmarks have. `defaults` are those of the shape."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    return parser


def environment(args: argparse.Namespace) -> dict[str, object]:
    """Returns what a reader needs to judge the numbers."""
    versions = {}
    for package in ("torch", "trl", "liger-kernel"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    return {
        "device": device,
        "threads": args.threads,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        **versions,
    }


def finish(result: dict[str, object], args: argparse.Namespace) -> None:
    """Prints the result as JSON, and writes it to the file of `--json`."""
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats columns as wide as their widest cell, the first one left-aligned."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if k == 0 else f"{cell:>{w}}"
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def figure(rows: int, columns: int, width: float, height: float):
    """Makes a plain figure with room for its labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")
