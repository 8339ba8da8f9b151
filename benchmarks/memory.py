"""Peak memory of the head over the number of tokens and the size of the vocabulary, forward and backward.

    python benchmarks/memory.py --json memory.json --plot memory.png

The peak is measured above the inputs, gradients included, each time in a fresh process: on a CPU the high-water mark of
resident memory, on a GPU the allocator's peak. The dashed line is the least that any method needs: the gradients.
"""

from __future__ import annotations

from common import COLOURS, LABELS, MIB, arguments, environment, figure, finish, peak, table, usable

COMPARED = ["ours", "full", "trl", "liger"]


def main() -> None:
    parser = arguments(__doc__, width=896)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[16000, 32000, 64000, 128000])
    parser.add_argument("--fixed_tokens", type=int, default=512, help="where the vocabulary varies")
    parser.add_argument("--fixed_vocabulary", type=int, default=32000, help="where the tokens vary")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--methods", nargs="+", default=COMPARED, choices=COMPARED)
    args = parser.parse_args()
    names, missing = usable(args.methods, args.device)

    def measure(tokens: int, vocabulary: int) -> dict[str, float]:
        shape = (tokens, args.width, vocabulary)
        found = {name: peak(name, *shape, args.dtype, args.device, args.threads) for name in names}
        size = 4 if args.dtype == "float32" else 2
        return found | {"gradients": (tokens + vocabulary) * args.width * size / MIB}

    over_tokens = {n: measure(n, args.fixed_vocabulary) for n in args.tokens}
    over_vocabulary = {v: measure(args.fixed_tokens, v) for v in args.vocabularies}
    for title, found in (("N", over_tokens), ("V", over_vocabulary)):
        rows = [[title, *(LABELS[n] for n in names), "gradients alone"]]
        rows += [[str(x), *(f"{found[x][n]:.0f}" for n in [*names, "gradients"])] for x in found]
        print(table(rows), "", sep="\n")
    print(*missing, sep="\n")
    if args.plot:
        plot(over_tokens, over_vocabulary, names, args)
    finish(
        {
            "peak_mib_over_tokens": over_tokens,
            "peak_mib_over_vocabulary": over_vocabulary,
            "peak_ratio_trl": {n: f["ours"] / f["trl"] for n, f in over_tokens.items()}
            if {"ours", "trl"} <= set(names)
            else None,
            "environment": environment(args),
            "missing": missing,
        },
        args,
    )


def plot(over_tokens, over_vocabulary, names, args) -> None:
    """Draws two panels of lines, labelled at their ends."""
    fig, axes = figure(1, 2, 10.5, 4.2)
    panels = (
        (axes[0], over_tokens, "tokens N", f"V = {args.fixed_vocabulary}"),
        (axes[1], over_vocabulary, "vocabulary V", f"N = {args.fixed_tokens}"),
    )
    for ax, found, label, title in panels:
        xs = list(found)
        for name in names:
            ax.plot(xs, [found[x][name] for x in xs], marker="o", color=COLOURS[name], label=LABELS[name])
        ax.plot(xs, [found[x]["gradients"] for x in xs], "--", color="#444444", label="gradients alone")
        ax.set_xscale("log", base=2)
        ax.set_xticks(xs, [f"{x:,}" for x in xs])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_xlabel(label)
        ax.set_title(f"{title}, H = {args.width}, {args.dtype}")
    axes[0].set_ylabel("peak MiB over the inputs")
    axes[0].legend(frameon=False)
    fig.savefig(args.plot, dpi=130)


if __name__ == "__main__":
    main()
