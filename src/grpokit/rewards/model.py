"""A reward model: a sequence classifier with one output, which scores prompt and completion together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..common.hub import is_hub_model, model_directory
from ..common.text import one_line
from ..data.tokenizing import added_before
from .builtin import text_of

BATCH_SIZE = 16  # sequences in one forward, sorted by length to keep padding small
EXPECTED = "expected the directory of a sequence-classification model with one label, as TRL's RewardTrainer saves it"


def is_reward_model(spec: str) -> bool:
    """Tells whether a value of --reward_funcs names a model: a directory, or org/name[@revision] of the Hub."""
    return (Path(spec) / "config.json").is_file() or is_hub_model(spec)


@lru_cache(maxsize=4)
def load_reward_model(spec: str) -> RewardModel:
    """Loads the reward model that `spec` names, once in a process. Raises ValueError naming --reward_funcs."""
    path = model_directory(spec, "--reward_funcs")
    _check_config(path)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ..parallel import default_device

    device = default_device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(f"--reward_funcs {path}: cannot be loaded: {one_line(error)}; {EXPECTED}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(
            f"--reward_funcs {path}: its weights lack {missing}, so its scores would be noise; {EXPECTED}"
        )
    return RewardModel(path, model.to(device).eval().requires_grad_(False), tokenizer)


def _check_config(path: str) -> None:
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        architectures = config.get("architectures") or ["none named"]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"--reward_funcs {path}: config.json: {one_line(error)}; {EXPECTED}") from error
    # One label is written as a map with one entry; without a map transformers assumes two.
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2
    if not architectures[0].endswith("ForSequenceClassification"):
        raise ValueError(f"--reward_funcs {path}: its config.json says {architectures[0]}; {EXPECTED}")
    if labels != 1:
        raise ValueError(f"--reward_funcs {path}: has {labels} labels; {EXPECTED}")


class RewardModel:
    """A reward function that asks a model.

    Example:
        `load_reward_model("models/rm")(prompts=["2+2="], completions=["4"])` returns a list such as `[1.7]`.
    """

    def __init__(self, path: str, model: Any, tokenizer: Any) -> None:
        self.path, self.model, self.tokenizer = path, model, tokenizer
        self.before = added_before(tokenizer)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if model.config.pad_token_id is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
            model.config.pad_token_id = tokenizer.pad_token_id
        # The score is read at the last token that is not padding. Without a padding token, sequences go one by one.
        self.batch_size = BATCH_SIZE if model.config.pad_token_id is not None else 1

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """Scores completions: [B] outputs of the model, computed in float32 on a CPU and bfloat16 on a GPU.

        Texts are tokenized as they are, prompt and completion joined. Chats go through the reward model's own template.

        Raises:
            ValueError: a chat without a template, or more tokens than the model's context.
        """
        rows = [self._ids(*pair) for pair in zip(prompts, completions, strict=True)]
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for row, score in zip(chosen, self._scores([rows[row] for row in chosen]), strict=True):
                scores[row] = score
        return scores

    @torch.inference_mode()
    def _scores(self, rows: list[list[int]]) -> list[float]:
        longest = max(map(len, rows))
        pad = self.model.config.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.model.device
        )
        return self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt + text_of(completion), verbose=False)["input_ids"]
            n = len(self.before)
            if n and list(ids[: 2 * n]) == 2 * self.before:  # a rendered chat has its BOS already
                ids = ids[n:]
        elif not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"{self.path}: the prompt is a chat, and the reward model's tokenizer has no chat template"
            )
        else:
            ids = self.tokenizer.apply_chat_template(
                _joined(prompt, completion),
                tokenize=True,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},
            )
        if self.context is not None and len(ids) > self.context:
            raise ValueError(
                f"{self.path}: {len(ids)} tokens of prompt and completion are over the reward model's context of "
                f"{self.context}; lower --max_prompt_length or --max_completion_length"
            )
        return list(ids)


def _joined(prompt: list[dict[str, Any]], completion: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins prompt and completion to one chat. A prefill and the completion that continues it are one turn."""
    if prompt[-1]["role"] != "assistant":
        return [*prompt, *completion]
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text_of(completion)}]
