"""On-policy distillation alone: does a student without rewards reach its teacher's accuracy?

    python benchmarks/distill.py --seeds 1 2 3

For each seed, the tiny chat model is made twice: the student's warm-up has wrong results in a quarter of its answers, the
teacher's has none and is longer. The student is then trained by `--teacher` alone. Accuracy is over 2,000 sampled completions of
500 held-out questions. The teacher's making isn't counted in the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grpokit import GRPOTrainer, evaluate

MAKE = Path(__file__).parents[1] / "examples" / "make_tiny_chat_model.py"
QUESTIONS, GENERATIONS = 500, 4


def make(folder: Path, seed: int, *more: str) -> Path:
    """Makes a tiny chat model with its questions."""
    command = [sys.executable, str(MAKE), "--output_dir", str(folder), "--seed", str(seed)]
    subprocess.run([*command, "--eval_rows", str(QUESTIONS), *more], check=True, stdout=subprocess.DEVNULL)
    return folder


def accuracy(model: Path, questions: Path, seed: int) -> float:
    """Evaluates 2,000 sampled completions."""
    found = evaluate(
        str(model),
        "accuracy",
        str(questions),
        num_generations=GENERATIONS,
        max_completion_length=32,
        max_samples=0,
        seed=seed,
    )
    return found["eval/reward"]


def distill(folder: Path, seed: int, steps: int) -> tuple[float, float, float, float]:
    """Returns the accuracy of the teacher, of the student before and after, and the seconds of training."""
    student = make(folder / "student", seed)
    teacher = make(folder / "teacher", seed, "--wrong", "0", "--steps", "900")
    questions = student / "eval.jsonl"
    trainer = GRPOTrainer(
        model=str(student / "model"),
        train_dataset=str(student / "train.jsonl"),
        teacher=str(teacher / "model"),
        prompts_per_step=128,
        num_generations=1,  # nothing is compared within a group
        max_completion_length=32,
        learning_rate=1e-3,
        adam_beta2=0.95,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        max_steps=steps,
        seed=seed,
        output_dir=str(folder / "run"),
    )
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    models = (teacher / "model", student / "model", folder / "run" / "final")
    return *(accuracy(model, questions, seed) for model in models), seconds  # pyright: ignore[reportReturnType]


def main() -> None:
    """Prints a line for each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=180)
    args = parser.parse_args()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            teacher, before, after, seconds = distill(Path(folder), seed, args.steps)
        reached = before < 0.5 * teacher and after > teacher - 0.03 and seconds < 180
        print(
            f"seed {seed}: teacher {teacher:.3f}, student {before:.3f} → {after:.3f} in {seconds:.0f} s"
            f"{'' if reached else '  NOT REACHED'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
