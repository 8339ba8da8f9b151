"""The card of a trained model: the README.md that people and the Hub expect in a model's directory.

The same run gives the same card: it has no dates, no times, and no paths of the machine that trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..common.figures import INTERVAL, figure_label, set_names, show_figure, split_figure
from ..common.text import FROM_PYTHON
from ..config.options import TrainConfig
from ..config.paths import PATHS, public_name
from ..config.resume import options_with
from ..config.yaml import to_yaml

CARD, CURVE = "README.md", "reward.svg"


@dataclass(frozen=True)
class ModelCard:
    """What a card says.

    Example:
        >>> card = ModelCard("demo", "org/base", (("org/math", 100),), 60, "dapo", "dapo = ...", "L = ...", "seed: 1\\n", {})
        >>> card.metadata()["base_model"], card.metadata()["tags"]
        ('org/base', ['grpo', 'reinforcement-learning', 'grpokit', 'dapo'])
    """

    name: str
    base: str  # the model that the run began with; org/name[@revision] where it is of the Hub
    data: tuple[
        tuple[str, int | None], ...
    ]  # datasets, as they may be published, and their rows where they are known
    steps: int
    loss: str  # its name
    described: str  # its parts and options
    formula: str  # LaTeX, one part a line
    settings: str  # YAML
    versions: Mapping[str, str]  # package → version
    base_on_hub: bool = True
    on_hub: tuple[str, ...] = ()  # the datasets of the Hub
    before: Mapping[str, float] | None = None  # the first evaluation's figures
    after: Mapping[str, float] | None = None  # this model's
    before_step: int = 0
    is_best: bool = False  # best/, not final/
    is_taught: bool = False  # by a teacher alone, without rewards
    is_adapter: bool = False
    is_plain: bool = True  # an adapter without DoRA and whole modules, which vLLM can serve
    repository: str = ""  # ORG/NAME of the Hub that it is uploaded to
    has_curve: bool = False

    def metadata(self) -> dict[str, Any]:
        """Returns the front matter. The Hub refuses models and datasets that it doesn't have, so others are left out."""
        found: dict[str, Any] = {"base_model": self.base.partition("@")[0]} if self.base_on_hub else {}
        if self.on_hub:
            found["datasets"] = list(self.on_hub)
        return found | {
            "library_name": "peft" if self.is_adapter else "transformers",
            "model_name": self.name,
            "pipeline_tag": "text-generation",
            "tags": ["distillation", "grpokit"]
            if self.is_taught
            else list(dict.fromkeys(["grpo", "reinforcement-learning", "grpokit", self.loss])),
        }

    def text(self) -> str:
        """Returns the whole README.md."""
        front = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{front}---\n\n# {self.name}",
            self._about(),
            "## Data\n\n" + "\n".join(f"* {_code(name)}{_rows(rows)}" for name, rows in self.data),
            self._loss(),
            f"## Settings\n\nOptions that differ from grpokit's defaults:\n\n{_fenced('yaml', self.settings)}",
            self._curve(),
            self._evaluation(),
            f"## Load it\n\n{self._loading()}",
            f"## Train it further\n\n{self._training()}",
            "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        ]
        return "\n\n".join(part.rstrip() for part in parts if part) + "\n"

    def _about(self) -> str:
        base = _code(self.base)
        what = f"A LoRA adapter of {base}, trained" if self.is_adapter else f"A model trained from {base}"
        which = ", the best of its run by `eval/reward`" if self.is_best else ""
        how = "on-policy distillation" if self.is_taught else "reinforcement learning"
        kind = "training" if self.is_taught else "GRPO training"
        return f"{what} by {how}: {self.steps} steps of {kind} with grpokit{which}."

    def _loss(self) -> str:
        formula = r",\quad ".join(line for line in self.formula.splitlines() if line)
        return f"## Loss\n\n`{self.described}`\n\n$$ {formula} $$"

    def _curve(self) -> str:
        if not self.has_curve:
            return ""
        return (
            f"## Reward\n\n![the reward of each step]({CURVE})\n\nThe mean reward of a step's completions, and the standard "
            "deviation within a prompt's completions around it; red diamonds are held-out prompts."
        )

    def _evaluation(self) -> str:
        if not self.after:
            return ""
        before = self.before or {}
        names = [n for n in self.after if n.startswith("eval/") and not n.endswith(INTERVAL)]
        sets = set_names(names)
        rows = [
            ["set", "metric", f"before (step {self.before_step})", f"this model (step {self.steps})"],
            ["---"] * 4,
        ]
        for name in names:
            own, short = split_figure(name, sets)
            metric = f"{figure_label(short)}, {_code(name)}".replace("|", r"\|")
            rows.append([own or "all", metric, show_figure(before, name), show_figure(self.after, name)])
        lines = [f"| {' | '.join(row if sets else row[1:])} |" for row in rows]
        interval = ", ± half the width of its 95 % confidence interval" * any(
            n.endswith(INTERVAL) for n in self.after
        )
        return f"## Evaluation\n\nOn held-out prompts{interval}:\n\n" + "\n".join(lines)

    @property
    def _place(self) -> str:
        return self.repository or "PATH"

    def _loading(self) -> str:
        where = "" if self.repository else "`PATH` is this directory, or its name on the Hub.\n\n"
        if self.is_adapter:
            python = (
                "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
                f'model = AutoPeftModelForCausalLM.from_pretrained("{self._place}")\n'
            )
            base = self.base.partition("@")[0] if self.base_on_hub else "BASE"
            served = f"vllm serve {base} --enable-lora --lora-modules {self.name}={self._place}"
            if self.is_plain and not self.base_on_hub:
                where += (
                    f"`BASE` is the directory of {_code(self.base)}, the model that it was trained from.\n\n"
                )
        else:
            python = (
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'model = AutoModelForCausalLM.from_pretrained("{self._place}")\n'
            )
            served = f"vllm serve {self._place}"
        python += f'tokenizer = AutoTokenizer.from_pretrained("{self._place}")'
        if self.is_adapter and not self.is_plain:
            merge = (
                "vLLM can't serve DoRA or whole modules as an adapter. Merge it into its base: "
                "`model.merge_and_unload().save_pretrained(...)`."
            )
            return f"{where}{_fenced('python', python)}\n\n{merge}"
        return f"{where}{_fenced('python', python)}\n\nWith vLLM:\n\n{_fenced('bash', served)}"

    def _training(self) -> str:
        signal = "--teacher TEACHER" if self.is_taught else f"--reward_funcs REWARD --loss_type {self.loss}"
        command = f"grpokit train --model {self._place} --dataset DATASET {signal}"
        note = (
            "\n\nThe adapter is merged into its base first; `--lora_r` trains a new one."
            if self.is_adapter
            else ""
        )
        return _fenced("bash", command) + note


def public_settings(config: TrainConfig) -> str:
    """Returns the settings that are not at their defaults and may change the model, as YAML without paths.

    Leaves out options that are free on resume, such as the places of files, but keeps the options of the evaluation.
    """
    free = {name for name in options_with(TrainConfig, ["free"]) if not name.startswith("eval_")}
    changed: dict[str, Any] = yaml.safe_load(to_yaml(config, only_changed=True)) or {}
    kept = {name: _public(name, value) for name, value in changed.items() if name not in free}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _public(name: str, value: Any) -> Any:
    # A vLLM server's model is named by its path.
    if name not in (*PATHS, "judge_model") or not isinstance(value, str | list):
        return value
    return public_name(value) if isinstance(value, str) else [public_name(item) for item in value]


def public_base(value: str) -> str:
    """Returns the name of the model that a run began with, as a card gives it.

    Example:
        >>> public_base("python:/home/me/models/Qwen"), public_base("org/name@main")
        ('Qwen', 'org/name@main')
    """
    return public_name(value).removeprefix(FROM_PYTHON)


def _rows(count: int | None) -> str:
    return "" if count is None else f": {count:,} rows"


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _fenced(language: str, text: str) -> str:
    """Puts text between fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
