"""Seconds and peak memory of the log-prob head with a GRPO-clip loss, forward and backward, against other implementations.

    python benchmarks/head.py --json head.json --plot head.png
    python benchmarks/head.py --device cuda --tokens 16384 --vocabulary 151936

Every method gets the same hidden states, targets and loss (dapo's clip, mean over tokens). Their losses and gradients are
compared before any time is reported. Times are medians of interleaved rounds; ratios are medians of the rounds' ratios.
`matmuls` is the floor: only the three matmuls that a gradient needs. TRL computes entropies with the log-probs in every
forward, because its GRPOTrainer asks for them; `trl_lean` leaves them out.
"""

from __future__ import annotations

import statistics

import torch
from common import (
    COLOURS,
    LABELS,
    METHODS,
    arguments,
    check_equal,
    environment,
    figure,
    finish,
    interleaved,
    make_work,
    peak,
    ratio,
    table,
    usable,
)

from grpokit.logprobs import Head, linear_logprob


def main() -> None:
    parser = arguments(__doc__, tokens=512, width=896, vocabulary=32000, rounds=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seen = environment(args)
    names, missing = usable(["ours", *(m for m in args.methods if m != "ours")], args.device)
    shape = (args.tokens, args.width, args.vocabulary)
    work = make_work(*shape, getattr(torch, args.dtype), args.device)
    differences = check_equal(names, work, tolerance=1e-4 if args.dtype == "float32" else 5e-2)
    seconds = interleaved(names, work, args.rounds)
    del work
    peaks = {name: peak(name, *shape, args.dtype, args.device, args.threads) for name in names}
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    rows = [["", "seconds", "peak MiB", "ours / it"]]
    rows += [[LABELS[n], f"{medians[n]:.3f}", f"{peaks[n]:.0f}", f"{ratio(seconds, n):.2f}"] for n in names]
    print(table(rows), *missing, sep="\n")
    if args.plot:
        plot(medians, peaks, args)
    finish(
        {
            "ratio_matmuls": ratio(seconds, "matmuls"),
            "ratio_full": ratio(seconds, "full"),
            "ratio_trl": ratio(seconds, "trl"),
            "ratio_trl_without_entropy": ratio(seconds, "trl_lean"),
            "ratio_liger": ratio(seconds, "liger"),
            "peak_ratio_trl": peaks["ours"] / peaks["trl"] if "trl" in peaks else None,
            "max_logp_error": logp_error(args),
            "seconds": medians,
            "rounds": seconds,
            "peak_mib": peaks,
            "difference_to_full": differences,
            "shape": dict(zip(("tokens", "width", "vocabulary"), shape, strict=True)) | {"dtype": args.dtype},
            "environment": seen,
            "missing": missing,
        },
        args,
    )


@torch.no_grad()
def logp_error(args) -> float:
    """Returns the largest error of 128 log-probs with bf16 parameters, against float64 on the same parameters."""
    work = make_work(128, args.width, args.vocabulary, torch.bfloat16, args.device, old_logps=False)
    hidden, targets = work.hidden.flatten(0, 1), work.targets.flatten()
    got, _ = linear_logprob(hidden, Head(work.weight), targets)
    want, _ = linear_logprob(hidden.double(), Head(work.weight.double()), targets)
    return float((got.double() - want).abs().max())


def plot(medians: dict[str, float], peaks: dict[str, float], args) -> None:
    """Draws two panels of bars: seconds and peak memory."""
    fig, axes = figure(1, 2, 10, 0.5 * len(medians) + 1.3)
    for ax, values, title in ((axes[0], medians, "seconds"), (axes[1], peaks, "peak MiB over the inputs")):
        names = list(values)[::-1]
        bars = ax.barh(
            [LABELS[n] for n in names], [values[n] for n in names], color=[COLOURS[n] for n in names]
        )
        ax.bar_label(bars, fmt="%.2f" if ax is axes[0] else "%.0f", padding=3)
        ax.set_title(title)
        ax.margins(x=0.14)
    fig.suptitle(
        f"Head, forward and backward: N = {args.tokens}, H = {args.width}, V = {args.vocabulary}, {args.dtype}, "
        + (f"{args.threads} threads" if args.device == "cpu" else torch.cuda.get_device_name())
    )
    fig.savefig(args.plot, dpi=130)


if __name__ == "__main__":
    main()
