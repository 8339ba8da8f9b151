"""Errors of log-probs and gradients with bf16 parameters, against float64 on the same parameters, by the token's probability.

    python benchmarks/accuracy.py --json accuracy.json --plot accuracy.png

In grpokit the logits' matmul has a float32 result. Others round it to bf16. The table shows, over the tokens of each bin
of p, the largest absolute error of the log-prob, and the median relative error of the gradient (∂logp/∂hidden, returned in
bf16). A bf16 number itself is off by up to 2^-9 = 0.2 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from common import COLOURS, LABELS, Missing, arguments, environment, figure, finish, table, trl_logps
from torch import Tensor

from grpokit.logprobs import Head, linear_policy_loss
from grpokit.types import LossOutput

EDGES = [0.0, 0.5, 0.9, 0.99, 0.999, 1.0]


def make_inputs(tokens: int, width: int, vocabulary: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Makes bf16 hidden [N, H] and weight [V, H], and targets whose probabilities range from about 0 to 1 − 1e-5."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=g) / width**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=g)
    hidden = torch.randn(tokens, width, generator=g)
    hidden = hidden + torch.linspace(4, 22, tokens)[:, None] * weight[targets]
    return hidden.to(device).bfloat16(), weight.to(device).bfloat16(), targets.to(device)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probs [N], and the gradient of their sum with respect to hidden [N, H]."""
    out = linear_policy_loss(
        hidden, Head(weight), targets, lambda logps, _, rows: LossOutput(logps.sum(), {})
    )
    return out.logps, torch.autograd.grad(out.loss, hidden)[0]


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Computes all logits, rounded to bf16 by the matmul, then float32."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    logps = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    return logps.detach(), torch.autograd.grad(logps.sum(), hidden)[0]


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Uses TRL's chunked log-probs."""
    logps = trl_logps(hidden, weight, targets)
    return logps.detach(), torch.autograd.grad(logps.sum(), hidden)[0]


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "ours": ours,
    "full": full,
    "trl": trl,
}
NAMES = LABELS | {"full": "full logits in bf16"}


def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Computes them in float64 by the definition: ∂logp/∂h = w_target − Σ p_j·w_j, with the target's own term from the others."""
    hidden, weight = hidden.double(), weight.double()
    logps = torch.log_softmax(hidden @ weight.T, -1)
    at = targets[:, None]
    d_logits = -logps.exp()
    others = d_logits.scatter(1, at, 0.0).sum(-1, keepdim=True)
    return logps.gather(1, at)[:, 0], d_logits.scatter(1, at, -others) @ weight


def main() -> None:
    args = arguments(__doc__, tokens=512, width=896, vocabulary=32000).parse_args()
    torch.set_num_threads(args.threads)
    hidden, weight, targets = make_inputs(args.tokens, args.width, args.vocabulary, args.device)
    logps, gradient = exact(hidden, weight, targets)
    bins = torch.bucketize(logps.exp(), torch.tensor(EDGES[1:-1], device=logps.device).double(), right=True)
    errors, missing = {}, []
    for name, method in METHODS.items():
        try:
            got, d_hidden = method(hidden.clone().requires_grad_(), weight, targets)
        except Missing as error:
            missing.append(str(error))
            continue
        errors[name] = (
            (got.double() - logps).abs(),
            (d_hidden.double() - gradient).norm(dim=-1) / gradient.norm(dim=-1),
        )
    labels = [f"{a:g}–{b:g}" for a, b in itertools.pairwise(EDGES)]
    found = {
        name: {
            label: {
                "tokens": int(here.sum()),
                "logp": float(of_logp[here].max()),
                "gradient": float(of_grad[here].median()),
            }
            for k, label in enumerate(labels)
            if (here := bins == k).any()
        }
        for name, (of_logp, of_grad) in errors.items()
    }
    for what in ("logp", "gradient"):
        shown = list(found["ours"])
        rows = [[f"error of the {what}, p in", *shown]]
        rows += [[NAMES[n], *(f"{found[n][label][what]:.1e}" for label in shown)] for n in found]
        print(table(rows), "", sep="\n")
    print(*missing, sep="\n")
    if args.plot:
        plot(found, args)
    sure = bins >= EDGES.index(0.99)
    finish(
        {
            "max_logp_error": float(errors["ours"][0].max()),
            "max_gradient_error_above_0.99": float(errors["ours"][1][sure].max()),
            "by_probability": found,
            "environment": environment(args),
            "missing": missing,
        },
        args,
    )


def plot(found, args) -> None:
    """Draws two panels of grouped bars over the bins of p, on a logarithmic scale."""
    fig, axes = figure(1, 2, 10.5, 4)
    labels = list(found["ours"])
    for ax, what, title in (
        (axes[0], "logp", "log-prob: largest absolute error"),
        (axes[1], "gradient", "gradient: median relative error"),
    ):
        for k, name in enumerate(found):
            at = [x + 0.8 * (k - (len(found) - 1) / 2) / len(found) for x in range(len(labels))]
            values = [found[name][label][what] for label in labels]
            ax.bar(at, values, width=0.75 / len(found), color=COLOURS[name], label=NAMES[name])
        ax.set_yscale("log")
        ax.set_xticks(range(len(labels)), labels)
        ax.set_xlabel("probability of the token")
        ax.set_title(title)
    top = axes[0].get_ylim()[1]
    axes[0].set_ylim(top=top * 12)
    axes[0].legend(frameon=False, ncols=3, loc="upper center", fontsize=9)
    fig.suptitle(
        f"bf16 parameters against float64: N = {args.tokens}, H = {args.width}, V = {args.vocabulary}"
    )
    fig.savefig(args.plot, dpi=130)


if __name__ == "__main__":
    main()
