"""One batch for two trainers: fixed completions, rewards and models. As a script, TRL's gradients of it.

    python tests/helpers/against_trl.py FOLDER

FOLDER has `policy/`, `old/` and `reference/`, models of one shape, and `NAME.yaml` for each probe, a file for `trl grpo`. TRL
trains one step of each, on `COMPLETIONS`, from rollouts of `old`. The gradient before clipping goes to NAME.safetensors.
Options of a probe that begin with an underscore are for this script: `_vllm` says that vLLM sampled.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch

# Digits of the tokenizer of sort_digits; a completion that doesn't end with "." was cut off.
COMPLETIONS = {
    "31=": ["13.", "31.", "1.", "133133"],
    "254=": ["245.", "2.", "4524.", "254254"],
    "77=": ["77.", "7.", "777.", "1."],
    "9081=": ["0189.", "1890.", "98.", "080808"],
    "645=": ["456.", "654.", "46.", "5."],
}
GENERATIONS = 4
FIELDS = {
    "output_dir": "unused",
    "per_device_train_batch_size": 20,
    "num_generations": GENERATIONS,
    "max_completion_length": 6,
    "max_steps": 1,
    "bf16": False,
}


def spread(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward as good as random."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def brevity(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward for short completions."""
    return [1 / len(ids) for ids in completion_ids]


REWARDS = {"spread": spread, "brevity": brevity}


def encode(tokenizer: Any, text: str) -> list[int]:
    """A completion as ids: "." is the end of the sequence."""
    ids = tokenizer(text.rstrip("."), add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if text.endswith(".") else list(ids)


def sampler_noise(ids: list[int]) -> torch.Tensor:
    """What vLLM's log-probs add to the trainer's, for the probes that correct for it."""
    return torch.tensor([((7 * n + place) % 11 - 5) / 4 for place, n in enumerate(ids)], dtype=torch.float64)


# --------------------------------------------------------------------------- TRL


def gradient_of_trl(folder: Path, name: str) -> torch.Tensor:
    """Trains one step with TRL's GRPOTrainer. Returns the gradient before it is clipped."""
    import yaml
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    options = yaml.safe_load((folder / f"{name}.yaml").read_text())
    rewards = [REWARDS[word.rpartition(":")[2]] for word in options.pop("reward_funcs")]
    options.pop("model_name_or_path")
    vllm = options.pop("use_vllm", False)
    options |= {"output_dir": str(folder / "trl")}
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    plain, old, reference = (
        AutoModelForCausalLM.from_pretrained(folder / model, dtype=torch.float64)
        for model in ("policy", "old", "reference")
    )
    found: list[torch.Tensor] = []

    class Fixed(GRPOTrainer):
        """Takes the completions from the table, and rollouts to be of `old`."""

        def _generate(self, prompts: list) -> tuple:
            seen: dict[str, int] = {}
            texts = []
            for prompt in prompts:
                texts.append(COMPLETIONS[prompt][seen.setdefault(prompt, 0)])
                seen[prompt] += 1
            completions = [encode(tokenizer, text) for text in texts]
            ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
            logps = [logps_of(plain, p, c) + sampler_noise(c) for p, c in zip(ids, completions, strict=True)]
            sampled = [each.tolist() for each in logps] if vllm else None
            return ids, completions, None, texts, sampled, {}, None, None

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            if not vllm:
                rows = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
                mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
                self.model.load_state_dict(old.state_dict())
                with torch.no_grad():
                    count = inputs["completion_ids"].shape[1]
                    logps, *_ = self._get_per_token_logps_and_entropies(self.model, rows, mask, count)
                self.model.load_state_dict(plain.state_dict())
                inputs["old_per_token_logps"] = logps
            return super().compute_loss(model, inputs, *rest, **named)

    trainer = Fixed(
        model=str(folder / "policy"),
        processing_class=tokenizer,
        reward_funcs=rewards,
        args=GRPOConfig(**(quiet | options)),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in COMPLETIONS]),
    )
    trainer.model.double()
    trainer.use_vllm = vllm
    if trainer.ref_model is not None:
        trainer.ref_model.double().load_state_dict(reference.state_dict())
    clip = trainer.accelerator.clip_grad_norm_

    def clip_and_keep(parameters: Any, *given: Any, **named: Any) -> Any:
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
        return clip(parameters, *given, **named)

    trainer.accelerator.clip_grad_norm_ = clip_and_keep
    trainer.train()
    return found[0]


@torch.no_grad()
def logps_of(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The log-probs of a completion's tokens, at temperature 1."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def main(folder: Path) -> None:
    """Writes the gradient of every probe in the folder; a probe that TRL refuses gets its message instead."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    for file in sorted(folder.glob("*.yaml")):
        try:
            save_file(
                {"gradient": gradient_of_trl(folder, file.stem).clone()}, folder / f"{file.stem}.safetensors"
            )
        except Exception as error:  # noqa: BLE001 (whatever it is, the test shows it)
            file.with_suffix(".error").write_text("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
