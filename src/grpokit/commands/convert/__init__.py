"""`grpokit convert-config`: converts the configuration of a run between TRL or ms-swift and grpokit.

It reads a YAML file or a launch script, and says what it could not carry over. Every default of theirs that changes a
number and is not grpokit's is written out, so that nothing depends on whose defaults fill a gap.

Example:
    >>> ours, notes = convert({"model_name_or_path": "org/model", "max_steps": 50})
    >>> ours["loss_type"], ours["epsilon_high"], ours["max_completion_length"]
    ('dapo', 0.2, 512)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config.commands import ConvertConfig
from ...config.conversion.draft import OURS, Draft, Trainer
from ...config.conversion.losses import convert_loss
from ...config.foreign import NOT_NEEDED, RENAMED, SWIFT_ONLY, TRL_ONLY
from ...config.options import TrainConfig
from ...config.yaml import from_yaml, with_options
from .batch import convert_batch, convert_steps
from .data import convert_data, convert_logging, convert_prompts, convert_rewards, convert_sampling
from .evaluation import convert_best, convert_columns, convert_shares
from .hub import convert_hub
from .model import convert_adapter, convert_engine, convert_model, convert_optimizer
from .script import read_launch

__all__ = ["convert", "convert_file", "find_trainer"]

GRPOKIT_ONLY = {"prompts_per_step", "updates_per_step", "micro_batch_tokens", "sampler", "correction_mode"}


def convert(
    theirs: Mapping[str, Any], processes: int = 1, trainer: Trainer | None = None, folder: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Converts options of TRL or ms-swift to options of `grpokit train`.

    Args:
        theirs: their options by name.
        processes: the number of processes that their run uses.
        trainer: whose options they are (None: as their names tell).
        folder: where their file is, for the files that it names.

    Returns:
        The options, and a sentence for each that was changed or left out.

    Raises:
        ValueError: their batch does not fit the number of processes.
    """
    options = {str(key).lstrip("-").replace("-", "_"): value for key, value in theirs.items()}
    draft = Draft.of(options, trainer or find_trainer(options), folder)
    if trainer is None and not options.keys() & (TRL_ONLY | SWIFT_ONLY):
        draft.say(
            "nothing here says whose options these are: read as TRL's; --from swift reads them as ms-swift's"
        )
    if "fp16" in draft.given and draft.left["fp16"] and "bf16" not in draft.given:
        draft.left.pop("bf16", None)
    convert_model(draft)
    pace = convert_batch(draft, processes)
    convert_data(draft)
    convert_shares(draft)
    convert_columns(draft)
    convert_prompts(draft)
    convert_sampling(draft)
    convert_rewards(draft)
    convert_loss(draft)
    convert_optimizer(draft, convert_adapter(draft), pace.per_step)
    convert_engine(draft)
    convert_steps(draft, pace)
    convert_best(draft)
    convert_logging(draft)
    convert_hub(draft)
    _rest(draft)
    return _checked(draft), draft.said


def find_trainer(options: Mapping[str, Any]) -> Trainer:
    """Tells whose options these are, by names that only one of the two has.

    Example:
        >>> find_trainer({"torch_dtype": "bfloat16", "dataset_name": "org/data"}), find_trainer({"tuner_type": "full"})
        ('trl', 'swift')
    """
    names = options.keys()
    return "swift" if len(names & SWIFT_ONLY) > len(names & TRL_ONLY) else "trl"


def _rest(draft: Draft) -> None:
    """Takes what no rule has taken: options of the same name, those that need no counterpart, and those without one."""
    for name in list(draft.left):
        value = draft.left.pop(name)
        ours = RENAMED.get(name, name)
        if value is None:
            continue
        if name in NOT_NEEDED:
            draft.say(f"{name}: not needed: {NOT_NEEDED[name]}")
        elif ours in OURS and ours not in draft.ours:
            draft.put(ours, value, name)
        elif name in draft.given:
            draft.unsupported(name, value)


def _checked(draft: Draft) -> dict[str, Any]:
    """Drops defaults that are grpokit's too, and values that grpokit does not take. Says which."""
    defaults = {name: OURS[name].default for name in draft.defaulted if name in OURS}
    names = [
        *(name for name in OURS if name in draft.ours),
        *(name for name in draft.ours if name not in OURS),
    ]
    kept = {n: draft.ours[n] for n in names if not (n in defaults and draft.ours[n] == defaults[n])}
    try:
        with_options(TrainConfig(), kept)
    except ValueError:
        kept = {name: value for name, value in kept.items() if _is_taken(draft, name, value)}
    written = [f"{name} {kept[name]}" for name in kept if name in draft.defaulted]
    if written:
        draft.said.insert(
            0, f"defaults of {draft.name}'s that are not grpokit's are written out: {', '.join(written)}"
        )
    return kept


def _is_taken(draft: Draft, name: str, value: Any) -> bool:
    """Tells whether grpokit takes a value, and says so where it does not."""
    try:
        with_options(TrainConfig(), {name: value})
    except ValueError as error:
        draft.say(f"{error}; left out, so grpokit's default applies: {name} {OURS[name].default}")
        return False
    return True


def convert_file(config: ConvertConfig) -> tuple[str, list[str]]:
    """Converts a file. Returns YAML, checked, and sentences about it.

    Raises:
        ValueError: the file cannot be read or converted.
    """
    import yaml

    launch = read_launch(config.file)
    if config.to == "trl":
        from .to_trl import convert_to_trl

        theirs, said = convert_to_trl(launch.options, config.file, config.num_processes or 1)
        return yaml.safe_dump(theirs, sort_keys=False, allow_unicode=True), said
    if own := launch.options.keys() & GRPOKIT_ONLY:
        raise ValueError(
            f"{config.file}: {min(own)} is grpokit's own option, so there is nothing to convert; see --to trl"
        )
    ours, said = convert(
        launch.options,
        config.num_processes or launch.processes or 1,
        config.source or launch.trainer,
        launch.folder,
    )
    said = [*launch.notes, *said]
    if config.num_processes is None and launch.processes:
        said.insert(0, f"num_processes: {launch.processes}, from the launcher")
    text = yaml.safe_dump(ours, sort_keys=False, allow_unicode=True)
    from_yaml(TrainConfig, text, config.file)
    return text, said
