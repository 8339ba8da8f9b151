"""Seconds per batch of completions: the decode loop against `generate`. Checks first that the tokens are the same.

    python benchmarks/decode.py --json decode.json --plot decode.png
    python benchmarks/decode.py --model DIR --prompts 4 --generations 8 --prompt_tokens 192 --completion_tokens 64

Without --model it uses a Qwen3 of 4.6M parameters with random weights, with prompts of one length and of two, and a tiny
one. The contestants take turns, `--runs` times. Each figure is a median. The ratio is that of the medians to `generate`
with our sampling. `do_sample=True` is the library's own sampling (other tokens).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from grpokit.parallel import default_device
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.policy.policy import Policy
from grpokit.rollouts.transformers import TransformersSampler, left_pad
from grpokit.types import Prompt

CONTESTANTS = {
    "generate": "generate, our sampling",
    "do_sample": "generate, do_sample=True",
    "loop": "decode loop",
    "unshared": "decode loop, share_prefill=False",
}


@dataclass(frozen=True)
class Shape:
    """One row of the table."""

    name: str
    model: str
    prompts: int
    generations: int
    prompt_tokens: int
    completion_tokens: int
    threads: int
    shorter: int = 0  # tokens that every second prompt is shorter by, so that there is padding


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a Hugging Face model directory, instead of the random ones")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=192)
    parser.add_argument("--completion_tokens", type=int, default=64)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that is shared"
    )
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--plot", help="draw them there (PNG)")
    return parser.parse_args()


MEDIUM: dict[str, Any] = {  # sizes of a Qwen3 of 4.6M parameters
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def make_model(path: Path, **sizes: Any) -> str:
    """Writes a Qwen3 with random weights and a tokenizer to `path`."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    from grpokit.commands.tasks import sort_digits

    tokenizer = sort_digits.make_tokenizer()
    config = Qwen3Config(
        **sizes,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def shapes_of(args: argparse.Namespace, folder: Path) -> list[Shape]:
    if args.model:
        sizes = (args.prompts, args.generations, args.prompt_tokens, args.completion_tokens)
        return [Shape(Path(args.model).name, args.model, *sizes, args.num_threads)]
    medium = make_model(folder / "medium", **MEDIUM)
    tiny = make_model(
        folder / "tiny",
        vocab_size=16,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
    )
    threads = args.num_threads
    return [
        Shape("4.6M, 4 × 8 × (192 + 64)", medium, 4, 8, 192, 64, threads),
        Shape("the same, two prompt lengths", medium, 4, 8, 192, 64, threads, shorter=16),
        Shape("4.6M, 4 × 8 × (8 + 64)", medium, 4, 8, 8, 64, threads),
        Shape("the same, two prompt lengths", medium, 4, 8, 8, 64, threads, shorter=2),
        Shape("76k, 32 × 8 × (6 + 7)", tiny, 32, 8, 6, 7, 1, shorter=3),
    ]


def plain_generate(policy: Policy, sampler: TransformersSampler, prompts: list[Prompt], n: int) -> Any:
    """Runs the library's own sampling at the same lengths, decoding included."""
    ids, mask = left_pad([p.ids for p in prompts for _ in range(n)], sampler.pad_id)
    with torch.inference_mode(), policy.computing():
        output = policy.model.generate(
            input_ids=ids.to(policy.device),
            attention_mask=mask.to(policy.device),
            do_sample=True,
            top_k=0,
            min_new_tokens=sampler.max_length,
            max_new_tokens=sampler.max_length,
        )
    return sampler.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


def measure(shape: Shape, dtype: str, runs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Returns the median seconds of each contestant. Raises RuntimeError if their tokens differ."""
    torch.set_num_threads(shape.threads)
    policy = load_policy(shape.model, dtype=dtype, temperature=1.0, device=default_device())
    tokenizer, length = load_tokenizer(shape.model), shape.completion_tokens

    def sampler(**options: Any) -> TransformersSampler:
        return TransformersSampler(
            policy, tokenizer, seed=0, max_completion_length=length, min_completion_length=length, **options
        )

    noise = torch.Generator().manual_seed(0)
    vocabulary = policy.model.config.get_text_config().vocab_size
    lengths = [shape.prompt_tokens - shape.shorter * (i % 2) for i in range(shape.prompts)]
    ids = [tuple(torch.randint(3, vocabulary, (n,), generator=noise).tolist()) for n in lengths]
    prompts = [Prompt(i, row, "", {}, "random:1") for i, row in enumerate(ids)]
    samplers = {
        "generate": sampler(decode="generate"),
        "loop": sampler(decode="loop"),
        "unshared": sampler(decode="loop", share_prefill=False),
    }
    tokens = {}
    for name, one in samplers.items():  # this also warms them up
        groups = one.sample(prompts, shape.generations)
        tokens[name] = [r.completion_ids.tolist() for g in groups for r in g.rollouts]
        if tokens[name] != tokens["generate"]:
            raise RuntimeError(f"{shape.name}: the tokens of {name} are not those of generate")
    contest: dict[str, Callable[[], Any]] = {
        name: lambda one=one: one.sample(prompts, shape.generations) for name, one in samplers.items()
    }
    contest["do_sample"] = lambda: plain_generate(policy, samplers["generate"], prompts, shape.generations)
    contest["do_sample"]()
    seconds: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(runs):
        for name, run in contest.items():
            start = clock()
            run()
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: statistics.median(seconds[name]) for name in CONTESTANTS}


def draw(path: str, results: list[dict[str, Any]]) -> None:
    """Draws times relative to `generate` with our sampling, one group of bars per shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in CONTESTANTS if name != "generate"]
    blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # keeps figures readable on the line at 1
    colours = {"do_sample": "#b0b0b0", "loop": "#1f6fb4", "unshared": "#8fbfe6"}
    figure, axes = plt.subplots(figsize=(9, 0.9 * len(results) + 1.6), layout="constrained")
    for i, result in enumerate(results):
        for j, name in enumerate(names):
            share, y = result["seconds"][name] / result["seconds"]["generate"], i + 0.26 * (j - 1)
            axes.barh(y, share, 0.24, color=colours[name], label=CONTESTANTS[name] if i == 0 else None)
            axes.text(share + 0.01, y, f"{share:.2f}", va="center", fontsize=9, bbox=blank)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(
        range(len(results)),
        [f"{r['name']}\n{1e3 * r['seconds']['generate']:.0f} ms by generate" for r in results],
    )
    axes.invert_yaxis()
    axes.set_xlim(
        0, 1.08 * max(1, *(r["seconds"][n] / r["seconds"]["generate"] for r in results for n in names))
    )
    axes.set_xlabel("time, as a share of generate with our sampling (the same tokens); less is better")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    args = arguments()
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    results = []
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'seconds (share of generate)':32}" + "".join(f"{title:>34}" for title in CONTESTANTS.values())
        )
        for shape in shapes_of(args, Path(folder)):
            seconds = measure(shape, args.dtype, args.runs, clock)
            cells = [f"{s:.4f} ({s / seconds['generate']:.2f})" for s in seconds.values()]
            print(f"{shape.name:32}" + "".join(f"{cell:>34}" for cell in cells), flush=True)
            results.append(asdict(shape) | {"model": Path(shape.model).name, "seconds": seconds})
    machine = {"device": str(default_device()), "processor": platform.machine(), "torch": torch.__version__}
    if args.json:
        report = {
            "runs": args.runs,
            "clock": args.clock,
            "dtype": args.dtype,
            "machine": machine,
            "shapes": results,
        }
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        draw(args.plot, results)


if __name__ == "__main__":
    main()
