"""Which model families train exactly? A tiny random model of each is trained, and every update computed again.

    python benchmarks/families.py                      all families, as a table
    python benchmarks/families.py Qwen3 gpt-oss        some of them
    python benchmarks/families.py --write              also into docs/*/models.md

Each family trains three steps × 2 iterations × 2 updates in float32. Then an independent plain loop computes the same
updates: each row alone, through transformers' own forward, with a dapo loss and an AdamW written out here. Log-probs must
agree within 1e-4, and the weights at the end within 1e-5; a family that amplifies rounding is tried again in float64, within
1e-9. Resume, an adapter, and the ways of sampling and of laying out rows are tried too.
Exit code: 0; 1 where a family trains wrongly, raises, or doesn't resume to the byte; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from family_configs import FAMILIES, make_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from grpokit import GRPOTrainer
from grpokit.policy.scoring import NonFiniteError

ROOT = Path(__file__).parents[1]
STEPS, ITERATIONS, UPDATES = 3, 2, 2
EPSILON, EPSILON_HIGH = 0.2, 0.28
RATE, BETAS, SMALL = 1e-3, (0.9, 0.999), 1e-8
CLOSE = {"float32": (1e-4, 1e-5), "float64": (1e-9, 1e-9)}  # log-probs, weights
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
ROWS = [{"prompt": text, "answer": "1"} for text in ("3=", "52=", "716=", "9=", "84=", "205=")]


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Rewards a completion by its tokens, so that groups have a spread."""
    return [sum(ids) % 5 / 4 + 0.1 * len(ids) for ids in completion_ids]


@dataclass(frozen=True)
class Verdict:
    """What was found of a family. Example: `Verdict("Qwen3", "exact", "the loop", "yes", "yes", "yes", "yes")`"""

    name: str
    trains: str  # "exact", "exact (shown in float64)", "refused: …", or "WRONG: …"
    sampled: str = ""
    packs: str = ""
    shares: str = ""
    lora: str = ""
    resumes: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether it trains otherwise than the plain loop, raises, or doesn't resume to the byte."""
        return "WRONG" in self.trains or self.resumes == "no"


# --------------------------------------------------------------------------- grpokit's run


def arguments(model: Path, output: Path, dtype: str, **changes: Any) -> dict[str, Any]:
    """The arguments of a run."""
    return {
        "model": str(model),
        "reward_funcs": reward,
        "train_dataset": ROWS,
        "output_dir": str(output),
        "loss_type": "dapo",
        "prompts_per_step": 4,
        "num_generations": 4,
        "updates_per_step": UPDATES,
        "num_iterations": ITERATIONS,
        "max_completion_length": 6,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "dtype": dtype,
        "num_threads": 1,
    } | changes


class Kept:
    """A callback that keeps each step's groups."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_step_end(self, step: int, metrics: Any, groups: Any) -> None:
        """Keeps the step's groups."""
        self.steps.append(groups)


def trained(model: Path, output: Path, dtype: str, **changes: Any) -> tuple[GRPOTrainer, list[Any]]:
    """Trains a model, and returns the trainer and each step's groups."""
    kept = Kept()
    trainer = GRPOTrainer(**arguments(model, output, dtype, **changes), callbacks=[kept])
    trainer.train("auto" if changes.get("save_steps") else None)
    return trainer, kept.steps


# --------------------------------------------------------------------------- the plain loop


@contextlib.contextmanager
def computing(dtype: str) -> Iterator[None]:
    """Computes in float64 where asked, also where a model upcasts to float32."""
    from grpokit.policy.policy import Float64Throughout

    with Float64Throughout() if dtype == "float64" else contextlib.nullcontext():
        yield


def log_probs(model: Any, prompt: tuple[int, ...], completion: Tensor) -> Tensor:
    """The log-probs of a completion's tokens [T], its row alone."""
    ids = torch.tensor([[*prompt, *completion.tolist()]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def plain_update(model: Any, rows: list[tuple[Any, Any, float, Tensor]]) -> None:
    """Adds one update's gradient: dapo (arXiv 2503.14476, equation 8), the mean over the update's tokens."""
    tokens = sum(len(rollout.completion_ids) for _, rollout, _, _ in rows)
    for prompt, rollout, advantage, old in rows:
        ratio = (log_probs(model, prompt.ids, rollout.completion_ids) - old).exp()
        clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON_HIGH)
        (-torch.minimum(ratio * advantage, clipped * advantage).sum() / tokens).backward()


def plain_adamw(parameters: list[Tensor], state: dict[str, Any]) -> None:
    """One step of AdamW without weight decay (arXiv 1711.05101, algorithm 2)."""
    state["t"] = state.get("t", 0) + 1
    for index, parameter in enumerate(parameters):
        if parameter.grad is None:
            continue
        gradient = parameter.grad
        first, second = state.setdefault(index, (torch.zeros_like(gradient), torch.zeros_like(gradient)))
        first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
        second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient * gradient)
        corrected = first / (1 - BETAS[0] ** state["t"])
        root = (second / (1 - BETAS[1] ** state["t"])).sqrt() + SMALL
        with torch.no_grad():
            parameter -= RATE * corrected / root
        parameter.grad = None


def recompute(path: Path, steps: list[Any], dtype: str) -> tuple[dict[str, Tensor], float]:
    """Trains the same rollouts by the plain loop. Returns the weights and the largest gap to the sampler's log-probs."""
    from transformers import AutoModelForCausalLM

    options = {"experts_implementation": "eager"} if dtype == "float64" else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    model.to(getattr(torch, dtype))
    parameters, state, gap = list(model.parameters()), {}, 0.0
    with computing(dtype):
        for groups in steps:
            rows = []
            for group in groups:
                for g, rollout in enumerate(group.rollouts):
                    with torch.no_grad():
                        old = log_probs(model, group.prompt.ids, rollout.completion_ids)
                    gap = max(gap, float((old - rollout.logps).abs().max()))
                    rows.append((group.prompt, rollout, float(group.advantages[g]), old))
            size = len(rows) // UPDATES
            for _ in range(ITERATIONS):
                for start in range(0, len(rows), size):
                    plain_update(model, rows[start : start + size])
                    plain_adamw(parameters, state)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, gap


# --------------------------------------------------------------------------- verdicts


def check_training(path: Path, output: Path, dtype: str) -> tuple[str, GRPOTrainer]:
    """Trains in one dtype and compares. Returns the gaps, or "" where they are small enough, and the trainer."""
    trainer, steps = trained(path, output / dtype, dtype)
    weights, gap = recompute(path, steps, dtype)
    ours = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    apart = max(float((ours[name].double() - weights[name].double()).abs().max()) for name in weights)
    most, furthest = CLOSE[dtype]
    agrees = gap <= most and apart <= furthest
    return "" if agrees else f"log-probs {gap:.1g}, weights {apart:.1g} apart in {dtype}", trainer


def check_family(name: str, folder: Path) -> Verdict:
    """Tries everything on one family."""
    path = make_model(folder / "model", name)
    try:
        problem, trainer = check_training(path, folder, "float32")
        trains = "exact"
        if problem:
            again, trainer = check_training(path, folder, "float64")
            trains = f"WRONG: {problem}; {again}" if again else "exact (shown in float64)"
    except NonFiniteError:
        raise
    except ValueError as error:
        return Verdict(name, refusal(error))
    policy = trainer._run.policy  # pyright: ignore
    sampled = "row by row" if policy.generate_not else "generate"
    if uses_loop(trainer):
        sampled = "the loop"
    return Verdict(
        name,
        trains,
        sampled,
        "yes" if policy.packs else "no",
        "yes" if policy.shares_not is None else "no",
        check_lora(path, folder),
        check_resume(path, folder),
    )


def refusal(error: Exception) -> str:
    """What a refusal says, without the path."""
    return "refused: " + str(error).partition(": ")[2][:160]


def tried(name: str, folder: Path) -> Verdict:
    """Tries a family. A ValueError is a refusal; any other error, and numbers that aren't finite, are reported as wrong."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return check_family(name, folder)
    except Exception as error:  # noqa: BLE001 - one family must not hide the others
        return Verdict(name, f"WRONG: raises {type(error).__name__}: {str(error)[:160]}")


def uses_loop(trainer: GRPOTrainer) -> bool:
    """Whether a trainer's model is sampled by the decode loop."""
    sampler = trainer._run.rollouts.sampler  # pyright: ignore
    return bool(sampler._uses_loop(16))


def check_lora(path: Path, folder: Path) -> str:
    """Whether an adapter on all linear layers trains, every part of it."""
    try:
        trainer, _ = trained(path, folder / "lora", "float32", lora_r=2, max_steps=1)
    except ValueError as error:
        return refusal(error)[:90]
    moved = [bool((p != 0).any()) for n, p in trainer.model.named_parameters() if "lora_B" in n]
    return "yes" if all(moved) else f"{sum(moved)} of {len(moved)} modules"


def check_resume(path: Path, folder: Path) -> str:
    """Whether a run that is resumed after two steps ends with the bytes of one that wasn't."""
    ends = []
    for name, stops in (("whole", (3,)), ("twice", (2, 3))):
        for stop in stops:
            trained(path, folder / name, "float32", max_steps=stop, save_steps=2)
        ends.append((folder / name / "final" / "model.safetensors").read_bytes())
    return "yes" if ends[0] == ends[1] else "no"


# --------------------------------------------------------------------------- the table

HEADINGS = ["family", "trains", "sampled by", "packs", "shares prompts", "LoRA", "resumes to the byte"]


def as_markdown(verdicts: list[Verdict]) -> str:
    """The table as the docs have it."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(str(cell) for cell in vars(v).values()) + " |" for v in verdicts]
    return "\n".join(lines)


def write(verdicts: list[Verdict]) -> None:
    """Writes the table into docs/*/models.md."""
    for language in ("en", "zh"):
        page = ROOT / "docs" / language / "models.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n{as_markdown(verdicts)}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="families to try (default: all)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/*/models.md")
    wanted = parser.parse_args()
    unknown = [name for name in wanted.families if name not in FAMILIES]
    if unknown:
        parser.error(f"unknown families {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    verdicts, table = [], Table(*HEADINGS)
    bar = Console(file=sys.stderr)
    for name in track(wanted.families or list(FAMILIES), "families", console=bar):
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append(tried(name, Path(folder)))
        bar.print(f"{name}: {verdicts[-1].trains}", highlight=False)
        table.add_row(*(str(cell) for cell in vars(verdicts[-1]).values()))
    Console(highlight=False).print(table)
    if wanted.write:
        write(verdicts)
    return int(any(verdict.is_wrong for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
