"""One optimizer step of TRL's GRPOTrainer on fixed completions, with TRL's own loss or grpokit's. As a script, on several ranks.

    torchrun --nproc_per_node 2 tests/helpers/inside_trl.py FOLDER JOBS.json

FOLDER has `policy/`, `old/` and `reference/`, models of one shape (`make_models`). Everything is float64 on the CPU.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from helpers.against_trl import COMPLETIONS, GENERATIONS, encode, logps_of, sampler_noise, spread
from helpers.tiny import make_model_dir

SEQUENCES = len(COMPLETIONS) * GENERATIONS
QUIET = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "bf16": False}
PLAIN = {
    "shuffle_dataset": False,
    "max_steps": 1,
    "logging_steps": 1,
    "max_completion_length": 6,
    "learning_rate": 1e-3,
}


def make_models(folder: Path) -> Path:
    """The three models: what sampled, what is trained, and the reference."""
    for seed, name in enumerate(("policy", "old", "reference")):
        make_model_dir(folder / name, seed=seed)
    return folder


def loaded(folder: Path, name: str) -> Any:
    """A model in float64."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64)


def make_trainer(
    folder: Path,
    loss: Any = None,
    kwargs: Any = None,
    *,
    own: bool = False,
    micro_batches: int = 1,
    evaluates: bool = False,
    **options: Any,
) -> Any:
    """A trainer on COMPLETIONS, whose first generation was sampled by `old`.

    `own`: TRL's class. `micro_batches`: of one optimizer step, over all ranks. `evaluates`: on the same prompts. It notes
    `gradients`, those of each optimizer step before they are clipped, `before`, its weights, and `generated`, the batches.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig
    from trl import GRPOTrainer as Theirs

    from grpokit.integrations.trl import GRPOTrainer

    if (
        not gc.get_freeze_count()
    ):  # Trainer collects garbage, which takes longer than a step with all that is imported
        gc.freeze()
        atexit.register(gc.unfreeze)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    near, plain = loaded(folder, "old"), loaded(folder, "policy")
    with torch.no_grad():  # near the policy: ratios on both sides of the clip range
        for moved, parameter in zip(near.parameters(), plain.parameters(), strict=True):
            moved.copy_(0.9 * parameter + 0.1 * moved)

    class Fixed(Theirs if own else GRPOTrainer):
        gradients: list
        generated: list

        def _generate(self, prompts: list) -> tuple:
            # Neighbours in a batch are generations of one prompt; a rank may begin within a group.
            seen = self.accelerator.process_index * len(prompts)
            texts = [COMPLETIONS[p][(seen + i) % GENERATIONS] for i, p in enumerate(prompts)]
            completions = [encode(tokenizer, text) for text in texts]
            ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
            logps = [
                logps_of(near, p, c) + sampler_noise(c) / 4 for p, c in zip(ids, completions, strict=True)
            ]
            sampled = [each.tolist() for each in logps] if self.use_vllm else None
            return ids, completions, None, texts, sampled, {}, None, None

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.model.load_state_dict(near.state_dict())
            output = super()._generate_and_score_completions(inputs)
            rows, mask = (
                torch.cat([output[f"prompt_{n}"], output[f"completion_{n}"]], dim=1) for n in ("ids", "mask")
            )
            with torch.no_grad():
                logps, *_ = self._get_per_token_logps_and_entropies(
                    self.model, rows, mask, output["completion_ids"].shape[1]
                )
            self.model.load_state_dict(self.now)
            output["old_per_token_logps"] = logps
            self.generated.append(output)
            return output

        def note_weights(self) -> None:
            self.now = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.before[self.state.global_step :] = [self.now]

        def training_step(self, model: Any, *rest: Any, **named: Any) -> Any:
            self.note_weights()
            return super().training_step(model, *rest, **named)

    size = int(os.environ.get("WORLD_SIZE", "1"))
    options = (
        QUIET
        | PLAIN
        | {
            "output_dir": str(folder / "trl"),
            "per_device_train_batch_size": SEQUENCES // (micro_batches * size),
            "gradient_accumulation_steps": micro_batches,
            "num_generations": GENERATIONS,
        }
        | options
    )
    config = GRPOConfig(**options)
    mine = {} if own else {"grpokit_loss": loss, "loss_kwargs": kwargs}
    if own and loss is not None:
        config.loss_type = loss
    rows = Dataset.from_list([{"prompt": prompt} for prompt in COMPLETIONS])
    trainer = Fixed(
        model=str(folder / "policy"),
        processing_class=tokenizer,
        reward_funcs=spread,
        args=config,
        train_dataset=rows,
        eval_dataset=rows if evaluates else None,
        **mine,
    )
    trainer.model.double()
    if trainer.ref_model is not None:
        trainer.ref_model.double().load_state_dict(loaded(folder, "reference").state_dict())
    trainer.gradients, trainer.generated = [], []
    trainer.folder, trainer.before = folder, []
    trainer.note_weights()
    clip = trainer.accelerator.clip_grad_norm_

    def clip_and_keep(parameters: Any, *given: Any, **named: Any) -> Any:
        trainer.gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
        return clip(parameters, *given, **named)

    trainer.accelerator.clip_grad_norm_ = clip_and_keep
    return trainer


def gradient(folder: Path, *given: Any, **named: Any) -> torch.Tensor:
    """The gradient of the first optimizer step."""
    trainer = make_trainer(folder, *given, **named)
    trainer.train()
    return trainer.gradients[0]


def assert_same(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    """Checks that two gradients are equal, relative to their norm, and that there is one."""
    assert one.norm() > 1e-3
    assert float((one - other).norm() / one.norm()) < tolerance


def main(folder: Path, jobs: Path) -> None:
    """Writes the gradient of every job, a dictionary of `make_trainer`'s arguments, and the log of its first step."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    found, logs = {}, {}
    for name, job in json.loads(jobs.read_text()).items():
        trainer = make_trainer(folder, **job)
        trainer.train()
        found[name], logs[name] = trainer.gradients[0].clone(), trainer.state.log_history[0]
    if trainer.accelerator.is_main_process:
        save_file(found, jobs.with_suffix(".safetensors"))
        jobs.with_suffix(".logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
