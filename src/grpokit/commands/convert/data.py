"""Converts the data, the prompts, the rewards, the sampling options and the evaluation."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from ...common.text import BUILT_IN_REWARDS
from ...config.conversion.correction import PLAIN_SAMPLING
from ...config.conversion.draft import Draft, listed, shown
from ...config.foreign_defaults import DEFAULTS
from ...data.names import read_name
from ...data.sources import is_hub_name

READERS = ("json", "csv", "parquet")  # the paths of `datasets` that read files
TRUNCATION = {"left": "truncate_left", "delete": "drop", "raise": "error"}
# Rewards of `trl grpo` (scripts/grpo.py) and of ms-swift (rewards/orm.py) that are built in here.
TRL_REWARDS = {
    "accuracy_reward": "accuracy",
    "think_format_reward": "format",
    "get_soft_overlong_punishment": "soft_overlong",
}
FORMATS = {
    "trl": {"think_format_reward": r"^<think>(?!.*<think>)(.*?)</think>.*$"},
    "swift": {"format": r"^<think>.*?</think>\s*<answer>.*?</answer>(?![\s\S])"},
}
# Options of `generation_kwargs`, and where they go.
GENERATION = {"stop_strings": "stop_words", "stop": "stop_words", "min_new_tokens": "min_completion_length"}
TRACKERS = ("tensorboard", "trackio", "wandb", "swanlab")


def convert_data(draft: Draft) -> None:
    """Converts the dataset and the order of its rows."""
    for word in ("datasets", "dataset_mixture"):
        _mixture(draft, word)
    found = listed(draft.take("dataset_name", draft.take("dataset")))
    config, split = draft.take("dataset_config"), draft.take("dataset_train_split")
    names = [_one_dataset(draft, str(each), "dataset") for each in found]
    if config is not None:
        names = [f"{name}:{config}" if is_hub_name(name) else name for name in names]
    if names:
        value = names[0] if len(names) == 1 else _named_apart(names)
        draft.put("dataset", value, "dataset_name", "dataset", "datasets", "dataset_mixture")
        if split is not None and not all(Path(name).is_file() for name in names):
            draft.put("dataset_split", split, "dataset_train_split", "datasets")
    if len(names) > 1:
        draft.say(
            f"dataset: {len(names)} datasets are drawn from in proportion to their rows here; {draft.name} takes each row once "
            "an epoch"
        )
    lazy = draft.take("lazy_tokenize")
    if lazy is not None:
        draft.put("lazy_tokenize", "always" if str(lazy).lower() == "true" else "auto")
    shuffles = [
        draft.take_flag(name, True)
        for name in ("shuffle_dataset", "dataset_shuffle", "train_dataloader_shuffle")
    ]
    if isinstance(draft.left.get("packing"), bool):  # ours of that name takes other values
        draft.left.pop("packing")
        draft.say("packing: not needed: --packing auto decides, and changes no result")
    draft.put("shuffle", all(shuffles), "shuffle_dataset", "dataset_shuffle", "train_dataloader_shuffle")
    _evaluation(draft)


def _named_apart(names: list[str]) -> list[str]:
    """Returns several datasets, with names of their own where two would have the same."""
    own = [read_name(name).name for name in names]
    if len(set(own)) == len(own):
        return names
    return [f"d{number}={name}" for number, name in enumerate(names, 1)]


def _mixture(draft: Draft, word: str) -> None:
    """Takes the datasets of a mixture."""
    mixture = draft.take(word)
    parts = mixture.get("datasets", []) if isinstance(mixture, dict) else listed(mixture)
    parts = [part for part in parts if isinstance(part, dict)]
    if not parts:
        return
    names: list[str] = []
    for part in parts:
        name, files, config = part.get("path", part.get("id")), part.get("data_files"), part.get("name")
        config = config or part.get("config")
        if name in READERS and files:
            names += map(str, listed(files))
        elif name:
            names.append(f"{name}:{config}" if config and is_hub_name(str(name)) else str(name))
    draft.left["dataset_name"] = names
    splits = {part["split"] for part in parts if part.get("split") is not None}
    if len(splits) > 1:
        draft.say(f"{word}: one split for all datasets here; {', '.join(sorted(splits))} are left out")
    elif splits:
        (draft.left["dataset_train_split"],) = splits
    if any(part.get("fraction") or part.get("weight") for part in parts):
        draft.say(f"{word}: fractions of datasets are left out; whole ones are taken")


def _one_dataset(draft: Draft, text: str, flag: str) -> str:
    """Reads ms-swift's `[HF::]name[:subset][#rows]`. Returns the name, as grpokit has it."""
    if draft.trainer != "swift" or (draft.folder / text).exists() or Path(text).exists():
        return text
    hub, _, name = text.rpartition("::")
    name, _, rows = name.partition("#")
    if rows.isdigit() and flag == "dataset":
        draft.put("max_samples", int(rows), "dataset")
        draft.say(f"max_samples: the first {rows} rows of {name}; ms-swift draws {rows} at random")
    elif rows:
        draft.say(f"{flag}: {text}: #{rows} is left out")
    if is_hub_name(name) and hub.lower() != "hf" and not draft.take_flag("use_hf"):
        draft.say(f"{flag}: {name}: ms-swift takes it from ModelScope, grpokit from the Hugging Face Hub")
    return name


def _evaluation(draft: Draft) -> None:
    """Converts the held-out prompts: TRL's are a split of the dataset, and only where eval_strategy says so."""
    held_out, split = listed(draft.take("val_dataset")), draft.take("dataset_test_split")
    strategy = str(draft.left.get("eval_strategy", draft.left.pop("evaluation_strategy", "no")))
    counts = draft.take("num_generations_eval")
    ratio = draft.take_number("split_dataset_ratio", 0.0)
    if ratio:
        draft.say(
            f"split_dataset_ratio: {ratio:g} has no counterpart; name held-out prompts with --eval_dataset"
        )
    if held_out:
        draft.put("eval_dataset", _one_dataset(draft, str(held_out[0]), "eval_dataset"), "val_dataset")
    elif draft.trainer == "trl" and strategy not in ("no", "False") and "dataset" in draft.ours:
        draft.put("eval_dataset", draft.ours["dataset"], "eval_strategy")
        draft.put("eval_split", split or "test", "eval_strategy")
    else:
        draft.left.pop("eval_steps", None)
        return
    if counts is not None:
        draft.put("eval_generations", counts, "num_generations_eval")


def convert_prompts(draft: Draft) -> None:
    """Converts the system prompt and the length of prompts and completions."""
    system = draft.take("system", draft.take("system_prompt"))
    if system is not None:
        text = _system(draft, str(system))
        if text is not None:
            draft.put("system_prompt", text, "system", "system_prompt")
    prefix = draft.take("response_prefix")
    if prefix:
        draft.put("generation_prefix", str(prefix).replace("\\n", "\n"), "response_prefix")
    _template(draft)
    longest = draft.take("max_prompt_length", draft.take("max_length"))
    if longest is not None:
        draft.put("max_prompt_length", longest, "max_prompt_length", "max_length")
    cut = draft.take_word("truncation_strategy", "left" if longest is not None else "")
    if cut in TRUNCATION:
        draft.put("long_prompts", TRUNCATION[cut], "truncation_strategy", "max_prompt_length")
    elif cut:
        draft.unsupported("truncation_strategy", cut)
    # RLHFArguments._init_max_completion_length has this order.
    lengths = [draft.take(name) for name in ("response_length", "max_new_tokens", "max_completion_length")]
    draft.put(
        "max_completion_length",
        next(
            (length for length in lengths if length is not None),
            DEFAULTS[draft.trainer]["max_completion_length"],
        ),
        *("response_length", "max_new_tokens", "max_completion_length"),
    )


def _template(draft: Draft) -> None:
    """Converts the arguments of the chat template: TRL's dict, which may be text, and ms-swift's `enable_thinking`."""
    given = draft.take("chat_template_kwargs", {})
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            draft.unsupported("chat_template_kwargs", given, "is no JSON")
            return
    kwargs = dict(given) if isinstance(given, dict) else {}
    thinking = draft.take("enable_thinking")
    if thinking is not None:
        kwargs["enable_thinking"] = thinking
    if kwargs:
        items = [f"{name}={json.dumps(value)}" for name, value in kwargs.items()]
        draft.put("chat_template_kwargs", items, "chat_template_kwargs", "enable_thinking")


def _system(draft: Draft, text: str) -> str | None:
    """Returns the system message: the text of a .txt file, where ms-swift's `system` names one."""
    if draft.trainer != "swift":
        return text
    if not text.endswith(".txt"):
        return text.replace("\\n", "\n")
    for path in (Path(text), draft.folder / text):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    draft.say(f"system: {text}: no such file, so its text is missing; left out")
    return None


def convert_sampling(draft: Draft) -> None:
    """Converts temperature, stop strings, truncation and penalty."""
    more = draft.take("generation_kwargs", {})
    for name, value in (more if isinstance(more, dict) else {}).items():
        draft.left.setdefault(GENERATION.get(str(name), str(name)), value)
    for name, plain in PLAIN_SAMPLING.items():
        if name in draft.left:
            value = draft.take(name)
            if value not in plain:
                draft.put(name, value, name, "generation_kwargs")
    if draft.take("num_beams", 1) not in (1, None):
        draft.say("num_beams: has no counterpart: completions are sampled; left out")
    stops = listed(draft.take("stop_words"))
    if stops:
        draft.put("stop", stops, "stop_words", "generation_kwargs")
    times = draft.take("max_resample_times")
    if draft.take_flag("dynamic_sample"):
        draft.put("max_resample_times", times, "dynamic_sample")


def convert_rewards(draft: Draft) -> None:
    """Converts the reward functions. Names that are not built in stay, with a note."""
    plugins = _plugins(draft)
    names = [str(name) for name in listed(draft.take("reward_funcs"))]
    models = listed(draft.take("reward_model_name_or_path"))
    after = [str(name) for name in listed(draft.take("reward_model"))]
    ours = [*map(str, models), *(_reward(draft, name, plugins) for name in names), *after]
    if ours:
        draft.put("reward_funcs", ours, "reward_funcs", "reward_model", "reward_model_name_or_path")
    length = draft.take("soft_max_length")
    if length is not None and length != draft.ours.get("max_completion_length"):
        draft.unsupported(
            "soft_max_length", length, "has no counterpart: soft_overlong counts to max_completion_length"
        )
    if "get_soft_overlong_punishment" in names:
        draft.put("soft_cache_length", 256, "reward_funcs")
        if draft.ours.get("max_completion_length") != 1280:
            draft.say(
                "reward_funcs: soft_overlong counts to max_completion_length here, to 1280 in `trl grpo`"
            )


def _reward(draft: Draft, name: str, plugins: dict[str, str]) -> str:
    if draft.trainer == "trl":
        ours = TRL_REWARDS.get(name, name)
        if ours == name and "." in name and ":" not in name and "/" not in name:
            ours = ":".join(name.rsplit(".", 1))
    else:
        ours = plugins.get(name, name)
    pattern = FORMATS[draft.trainer].get(name)
    if pattern is not None:
        draft.put("format_pattern", pattern, "reward_funcs")
    if draft.trainer == "trl" and name == ours and name in BUILT_IN_REWARDS:
        draft.say(
            f"reward_funcs: {name} is grpokit's; if the script's own of that name differs, name file.py:function"
        )
    if ours not in BUILT_IN_REWARDS and ":" not in ours and "/" not in ours:
        draft.say(f"reward_funcs: {name} is not built in; name file.py:function in its place")
    return ours


def _plugins(draft: Draft) -> dict[str, str]:
    """Reads ms-swift's plugin files: `orms['name'] = Class` makes the reward `file.py:Class`."""
    found: dict[str, str] = {}
    for file in map(str, listed(draft.take("external_plugins"))):
        path = next((p for p in (Path(file), draft.folder / file) if p.is_file()), None)
        try:
            tree = ast.parse(path.read_text(encoding="utf-8")) if path else None
        except (SyntaxError, UnicodeDecodeError):
            tree = None
        if tree is None:
            draft.say(
                f"external_plugins: {file} cannot be read here; name its classes, as --reward_funcs {file}:Class"
            )
            continue
        for node in ast.walk(tree):
            match node:
                case ast.Assign(
                    targets=[ast.Subscript(value=ast.Name(id="orms"), slice=ast.Constant(value=str(name)))],
                    value=ast.Name(id=kind),
                ):
                    found[name] = f"{file}:{kind}"
    return found


def convert_logging(draft: Draft) -> None:
    """Converts the trackers, and what is printed of completions."""
    wanted: Any = listed(draft.take("report_to"))
    kept = [name for name in wanted if name in TRACKERS]
    if kept:
        draft.put("report_to", kept)
    for name in wanted:
        if name not in (*TRACKERS, "none", "all"):
            draft.unsupported("report_to", name)
    if isinstance(
        draft.left.get("log_completions"), bool
    ):  # ours is a number; completions.jsonl is always written
        draft.left.pop("log_completions")
    resume = draft.left.get("resume_from_checkpoint")
    if isinstance(resume, bool):
        draft.left.pop("resume_from_checkpoint")
        if resume:
            draft.put("resume_from_checkpoint", "auto")
    elif resume is not None:
        draft.left.pop("resume_from_checkpoint")
        draft.say(f"resume_from_checkpoint: {shown(resume)} is a checkpoint of another trainer; left out")
