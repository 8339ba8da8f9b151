"""Seconds of a whole GRPO step, sampling and learning, against TRL's GRPOTrainer: same model, prompts, lengths, loss.

    python benchmarks/step.py                               both shapes of the table in RESULTS.md
    python benchmarks/step.py --prompt_tokens 64 --completion_tokens 128 --rounds 9 --json step.json --plot step.png
    python benchmarks/step.py --only ours                   without the competitor

Each trainer runs as its users run it, in a process of its own. The two take turns, one step each, so that a slow minute
affects both. All completions have the full length. Before any time is reported, grpokit gets TRL's first batch with TRL's
advantages, and the two gradients must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

TRAINERS = {"ours": "grpokit", "trl": "TRL"}
HERE = Path(__file__).parent
TOLERANCE = 1e-4  # relative difference of the gradients, in float32


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="a model directory (default: a Qwen3 of 5M parameters)")
    parser.add_argument("--loss_type", default="dapo")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, nargs="+", default=[192, 8], help="one shape for each")
    parser.add_argument("--completion_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", choices=["", *TRAINERS])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--turn", default="", help=argparse.SUPPRESS)  # the trainer that this process runs
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def spread(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward: as good as random, and the same function for both."""
    return [sum(ids) % 97 / 97 for ids in completion_ids]


# --------------------------------------------------------------------------- the trainers, each in its own process


class Turns:
    """Takes a step when the parent asks for it, and reports its seconds."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # keeps what the trainers print away from the parent
        self.start = 0.0

    def wait(self) -> None:
        """Waits for the parent's line. The end of its input ends this process."""
        if not sys.stdin.readline():
            os._exit(0)
        self.start = time.perf_counter()

    def done(self, **phases: float) -> None:
        """Reports a finished step."""
        self.out.write(json.dumps({"step": time.perf_counter() - self.start, **phases}) + "\n")
        self.wait()


def train_ours(args: argparse.Namespace, turns: Turns) -> None:
    """Runs `grpokit train`, pausing at the end of each step."""
    from grpokit.config.options import TrainConfig
    from grpokit.training.session import train_to_end
    from grpokit.training.setup.start import start

    config = TrainConfig(
        model=args.model,
        dataset=(str(args.folder / "prompts.jsonl"),),
        output_dir=str(args.folder / "ours"),
        reward_funcs=(f"{__file__}:spread",),
        loss_type=args.loss_type,
        prompts_per_step=args.prompts,
        num_generations=args.generations,
        max_completion_length=args.completion_tokens,
        min_completion_length=args.completion_tokens,
        max_steps=10**6,
        dtype="float32",
        num_threads=args.threads,
    )
    run, _ = start(config)
    finish_step = run.finish_step
    turns.wait()

    def finished(*given: Any) -> Any:
        step = finish_step(*given)
        turns.done(rollout=step.metrics["time/rollout"], learn=step.metrics["time/learn"])
        return step

    run.finish_step = finished
    train_to_end(run)


def train_trl(args: argparse.Namespace, turns: Turns) -> None:
    """Runs TRL's trainer, pausing between steps. Its first batch and gradient go to a file."""
    from datasets import load_dataset
    from safetensors.torch import save_file
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    batch = args.prompts * args.generations
    settings = GRPOConfig(
        output_dir=str(args.folder / "trl"),
        loss_type=args.loss_type,
        per_device_train_batch_size=batch,
        num_generations=args.generations,
        max_completion_length=args.completion_tokens,
        generation_kwargs={"min_new_tokens": args.completion_tokens},
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=10**6,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    first: dict[str, torch.Tensor] = {}

    class Watched(GRPOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            if not first:
                names = ("prompt_ids", "completion_ids", "advantages")
                first.update({name: inputs[name].detach().clone().cpu() for name in names})
            return super().compute_loss(model, inputs, *rest, **named)

    class Alternate(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            if "gradient" not in first:
                first["gradient"] = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
                save_file({k: v.contiguous() for k, v in first.items()}, args.folder / "first.safetensors")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.done()

    trainer = Watched(
        model=args.model,
        reward_funcs=spread,
        args=settings,
        train_dataset=load_dataset("json", data_files=str(args.folder / "prompts.jsonl"), split="train"),
        callbacks=[Alternate()],
    )
    trainer.train()


# --------------------------------------------------------------------------- the referee


class Trainer:
    """A trainer's process."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path, prompt_tokens: int) -> None:
        self.log = folder / f"{name}.log"
        given = {
            "model": args.model,
            "loss_type": args.loss_type,
            "prompts": args.prompts,
            "generations": args.generations,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": args.completion_tokens,
            "threads": args.threads,
            "turn": name,
            "folder": folder,
        }
        command = [sys.executable, __file__, *(f"--{k}={v}" for k, v in given.items())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env=environment,
            )

    def step(self) -> dict[str, float]:
        """Lets it take one step, and returns its seconds. Ends the program with the end of its log if it has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.log.stem} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def end(self) -> None:
        """Stops it."""
        self.process.kill()
        self.process.wait()


def write_prompts(path: Path, tokens: int, count: int = 64) -> None:
    """Writes prompts of random digits, one token each."""
    draw = torch.Generator().manual_seed(tokens)
    rows = torch.randint(10, (count, tokens), generator=draw).tolist()
    path.write_text("".join(json.dumps({"prompt": "".join(map(str, row))}) + "\n" for row in rows))


def difference(args: argparse.Namespace, folder: Path) -> float:
    """Computes TRL's first batch, with its advantages, in grpokit. Returns the relative difference of the gradients."""
    from safetensors.torch import load_file

    from grpokit.batch.plan import plan_step
    from grpokit.losses import make_loss
    from grpokit.parallel import default_device
    from grpokit.policy.learn import Learning, optimize
    from grpokit.policy.load import load_policy
    from grpokit.types import Prompt, Rollout, RolloutGroup

    theirs = load_file(folder / "first.safetensors")
    ones = torch.ones(args.completion_tokens)
    rows: dict[tuple[int, ...], list[int]] = {}  # TRL shuffles its batch: prompt → its places
    for i, ids in enumerate(theirs["prompt_ids"].tolist()):
        rows.setdefault(tuple(ids), []).append(i)
    groups = [
        RolloutGroup(
            Prompt(number, prompt, "", {}, ""),
            tuple(Rollout(theirs["completion_ids"][i], -ones, ones, "", "stop", 0, ones.bool()) for i in at),
            advantages=theirs["advantages"][at].double(),
        )
        for number, (prompt, at) in enumerate(rows.items())
    ]
    policy = load_policy(args.model, dtype="float32", temperature=1.0, device=default_device())
    loss = make_loss(args.loss_type, epsilon_high=0.2)  # TRL's default
    still = torch.optim.SGD(policy.parameters(), lr=0.0)
    optimize(policy, plan_step(groups, loss)[0], loss, still, Learning(max_grad_norm=0.0))
    ours = torch.cat([p.grad.flatten().cpu() for p in policy.parameters() if p.grad is not None])
    return float((ours - theirs["gradient"]).norm() / theirs["gradient"].norm())


def measure(args: argparse.Namespace, folder: Path, prompt_tokens: int) -> dict[str, Any]:
    """Measures one shape: the trainers in turns."""
    write_prompts(folder / "prompts.jsonl", prompt_tokens)
    names = [args.only] if args.only else list(TRAINERS)
    trainers = {name: Trainer(name, args, folder, prompt_tokens) for name in names}
    try:
        for trainer in trainers.values():  # the first steps pay for what starts only once
            trainer.step()
            trainer.step()
        gap = difference(args, folder) if "trl" in trainers else None
        if gap is not None and not gap <= TOLERANCE:
            raise SystemExit(f"the gradients of one batch differ by {gap:.1e}: no times are reported")
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for turn in range(args.rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                steps[name].append(trainers[name].step())
    finally:
        for trainer in trainers.values():
            trainer.end()

    def median(name: str, phase: str) -> float:
        return statistics.median(step[phase] for step in steps[name])

    result: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "seconds": {name: median(name, "step") for name in names},
        "gradient_difference": gap,
        "rounds": {name: [step["step"] for step in steps[name]] for name in names},
    }
    if "ours" in names:
        result["phases"] = {phase: median("ours", phase) for phase in ("rollout", "learn")}
    if len(names) == 2:
        pairs = zip(steps["ours"], steps["trl"], strict=True)
        result["ratio_trl"] = statistics.median(a["step"] / b["step"] for a, b in pairs)
    return result


def main() -> None:
    args = arguments()
    if args.turn:
        torch.set_num_threads(args.threads)
        args.prompt_tokens = args.prompt_tokens[0]
        {"ours": train_ours, "trl": train_trl}[args.turn](args, Turns())
        return
    from common import environment, finish, table
    from decode import MEDIUM, make_model

    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    seen, results = environment(args), []
    rows = [["", *(f"{TRAINERS[n]}, s" for n in TRAINERS), "ours / TRL", "rollout", "learn"]]
    for prompt_tokens in args.prompt_tokens:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            given, args.model = args.model, args.model or make_model(folder / "model", **MEDIUM)
            result = measure(args, folder, prompt_tokens)
            args.model = given
        results.append(result)
        cells = [f"{result['seconds'][n]:.3f}" if n in result["seconds"] else "-" for n in TRAINERS]
        cells.append(f"{result['ratio_trl']:.2f}" if "ratio_trl" in result else "-")
        cells += [f"{seconds:.3f}" for seconds in result.get("phases", {}).values()] or ["-", "-"]
        rows.append([f"{prompt_tokens} + {args.completion_tokens} tokens", *cells])
    print(table(rows))
    if args.plot:
        draw(args.plot, args, results)
    shape = {k: getattr(args, k) for k in ("loss_type", "prompts", "generations", "completion_tokens")}
    finish({"shape": shape, "results": results, "environment": seen}, args)


def draw(path: Path, args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Draws bars of seconds per shape and trainer."""
    from common import COLOURS, figure

    fig, ax = figure(1, 1, 7, 0.8 * len(results) + 1.2)
    for i, result in enumerate(results):
        for k, (name, seconds) in enumerate(result["seconds"].items()):
            label = TRAINERS[name] if i == 0 else None
            bar = ax.barh(i + 0.36 * k - 0.18, seconds, 0.34, color=COLOURS[name], label=label)
            ax.bar_label(bar, fmt="%.2f s", padding=3)
    ax.set_yticks(range(len(results)), [f"{r['prompt_tokens']} + {args.completion_tokens}" for r in results])
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel="seconds of a step", ylabel="prompt + completion tokens")
    fig.legend(loc="outside upper center", ncols=2, frameon=False)
    fig.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
