"""The cases: command lines of grpokit, and the files of each that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RUN, RESUMED = "run", "resumed"  # output directories, in the directory of the case
RECIPE = "task/demo.yaml"
DIGITS = "task/rewards.py:digits"

# A second reward, as a user would write one. It is finer than exact_match.
REWARDS = '''\
def digits(completions, answer, **kwargs):
    """The share of digits that stand in their place."""
    pairs = zip(completions, answer, strict=True)
    return [sum(c == a for c, a in zip(text, right)) / len(right) for text, right in pairs]
'''

SMALL = {
    "model": "task/model",
    "dataset": "task/train.jsonl",
    "eval_dataset": "task/eval.jsonl",
    "eval_samples": "16",
    "eval_generations": "2",
    "output_dir": RUN,
    "max_samples": "256",
    "reward_funcs": f"exact_match {DIGITS}",
    "prompts_per_step": "4",
    "num_generations": "6",
    "updates_per_step": "2",
    "max_completion_length": "7",
    "learning_rate": "1e-3",  # so large that ratios leave their clip range within two updates
    "max_steps": "2",
}


@dataclass(frozen=True)
class Case:
    """One run of each version: Case("kl", "--loss_type dapo --beta 0.1"), whose flags win over those of SMALL."""

    name: str
    flags: str = ""
    ranks: int = 1
    killed: bool = False  # a second run is killed in its midst and resumed, and must end as the first
    command: str = "train"
    draws: bool = (
        False  # the pictures of its report; without them they are left blank, which saves half the time
    )

    @property
    def arguments(self) -> list[str]:
        """The command line after `grpokit`."""
        if self.command == "eval":
            return ["eval", *self.flags.split()]
        given = self.flags.split()
        if "--config" in given:
            return ["train", *given]
        kept = {name: value for name, value in SMALL.items() if f"--{name}" not in given}
        return [
            "train",
            *(word for name, value in kept.items() for word in (f"--{name}", *value.split())),
            *given,
        ]

    @property
    def outputs(self) -> list[str]:
        """What the case leaves in its directory: directories of training runs, or one file."""
        if self.command == "eval":
            return ["eval.json"]
        return [RUN, RESUMED] if self.killed else [RUN]


def demo(steps: int) -> str:
    """The flags of the demo, with the task in its place."""
    return (
        f"--config {RECIPE} --model task/model --dataset task/train.jsonl --eval_dataset task/eval.jsonl "
        f"--output_dir {RUN} --max_steps {steps}"
    )


EVALUATION = (
    "--model task/model --dataset task/eval.jsonl --reward_funcs exact_match --max_completion_length 7 "
    "--max_samples 64 --num_generations 4 --output_file eval.json"
)
LORA = "--lora_r 4 --beta 0.05"

VARIANTS = {
    # the model
    "lora": LORA,
    "lora-adapter": f"{LORA} --lora_save adapter",
    "reference": "--beta 0.05",
    "float64": "--dtype float64",
    "bfloat16": "--dtype bfloat16",
    # advantages
    "gdpo": "--advantage_estimator gdpo --reward_weights 1 0.5",
    "rloo": "--advantage_estimator rloo",
    "opo": "--advantage_estimator opo",
    "reinforce_plus_plus": "--advantage_estimator reinforce_plus_plus",
    "scale-batch": "--scale_rewards batch",
    # terms and masks of the loss
    "correction-truncate": "--correction_mode truncate --correction_cap 1",
    "correction-mask": "--correction_mode mask --correction_low 0.9999999 --rejected_tokens drop",
    "kl-k1": "--beta 0.05 --kl_estimator k1 --kl_gradient k2",
    "kl-ratio": "--beta 0.05 --kl_gradient ratio",
    "entropy": "--entropy_coef 0.01 --top_entropy_quantile 0.5",
    "delta": "--delta 1.5",
    "opsm": "--opsm_threshold 0.01",
    "sapo-bare": "--loss_type sapo --sapo_gain none",
    # masks so tight that they act within two steps
    "cispo-capped": "--loss_type cispo --epsilon_high 1.05",
    "dppo_tv-masked": "--loss_type dppo_tv --loss_kwargs dppo_delta=0.01",
    "dppo_kl-masked": "--loss_type dppo_kl --loss_kwargs dppo_delta=0.001",
    "m2po-masked": "--loss_type m2po --loss_kwargs m2_threshold=0.001",
    # the sampler
    "generate": "--decode generate",
    "no-shared-prefill": "--no-share_prefill",
    "sampling": "--temperature 1.2 --min_completion_length 2 --rollout_batch_size 7",
    "resample": "--reward_funcs exact_match --max_resample_times 2 --mask_truncated_completions",
    # how rows stand in a forward
    "share-always": "--share_prompts always",
    "share-never": "--share_prompts never",
    "packed": "--packing packed",
    "padded": "--packing padded --micro_batch_tokens 64",
    "dead-rows-dropped": "--reward_funcs exact_match --drop_dead_rows",
    "dead-rows-kept": "--reward_funcs exact_match --no-drop_dead_rows",
    "checkpointing": "--gradient_checkpointing",
    # the optimizer
    "schedule": "--num_iterations 2 --lr_scheduler_type cosine --warmup_steps 1 --weight_decay 0.1 --max_steps 3",
}


def all_cases(losses: Sequence[str], demo_steps: int) -> list[Case]:
    """Every case, the longest first, so that none is left over at the end."""
    return [
        Case("demo", demo(demo_steps), draws=True),
        Case("demo-2-ranks", demo(min(demo_steps, 5)) + " --eval_samples 32", ranks=2),
        Case("lora-2-ranks", LORA, ranks=2),
        Case("killed", "--max_steps 12 --save_steps 1 --prompts_per_step 8", killed=True),
        Case("eval", EVALUATION, command="eval"),
        *(Case(f"loss-{name}", f"--loss_type {name}") for name in losses),
        *(Case(name, flags) for name, flags in VARIANTS.items()),
    ]
