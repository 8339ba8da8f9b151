"""Makes the card of a run's model: the README.md and the picture that are saved with the weights in final/ and best/."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..common import VERSION
from ..common.console import say
from ..common.hub import is_hub_model
from ..common.text import FROM_PYTHON, one_line
from ..config.options import TrainConfig
from ..config.paths import public_name
from ..config.teacher_options import teaches_alone
from ..data.mixture import MixedPrompts
from ..data.names import read_names
from ..data.ordered import OrderedPrompts
from ..data.sources import is_hub_name
from ..runs import report
from ..runs.card import CARD, CURVE, ModelCard, public_base, public_settings
from .setup.loss import objective_of

if TYPE_CHECKING:
    from .run import Run


def card_files(run: Run, step: int, figures: Mapping[str, float], *, is_best: bool = False) -> dict[str, str]:
    """Returns the card of a run's present model and the picture in it: name → content.

    The card only describes the model, so an error in making it is printed and does not end the run.

    Args:
        run: the run.
        step: its steps done.
        figures: the evaluation of the present model; empty: none.
        is_best: whether the model is best/; else it is final/.

    Returns:
        The files; {} on every rank but the main one.
    """
    if not run.world.is_main:
        return {}
    try:
        return _files(run, step, figures, is_best)
    except Exception as error:  # noqa: BLE001 - the model is what counts
        where = run.recorder.write_error(error)
        say(f"note: {CARD} could not be written ({type(error).__name__}: {one_line(error)}; {where})")
        return {}


def _files(run: Run, step: int, figures: Mapping[str, float], is_best: bool) -> dict[str, str]:
    config, evaluations = run.config, run.recorder.evaluations
    shown = [*evaluations, {**figures, "step": step}] if is_best else evaluations
    curve = report.reward_curve(run.recorder.metrics_file.rows(), shown)
    base, (described, formula) = public_base(config.model), objective_of(config, run.loss)
    card = ModelCard(
        name=config.push_to_hub.rpartition("/")[2] or config.run_name or run.output.resolve().name,
        base=base,
        base_on_hub=is_hub_model(base) and config.model.endswith(base),
        data=_data_of(run),
        on_hub=hub_datasets(config),
        steps=step,
        loss=run.loss.name,
        described=described,
        formula=formula,
        is_taught=teaches_alone(config),
        settings=public_settings(config),
        versions=_versions(config),
        before=evaluations[0] if evaluations else None,
        before_step=evaluations[0]["step"] if evaluations else 0,
        after=figures,
        is_best=is_best,
        is_adapter=run.save_format.only_adapter,
        is_plain=not (config.use_dora or config.lora_modules_to_save),
        repository=config.push_to_hub,
        has_curve=bool(curve),
    )
    return {CARD: card.text()} | ({CURVE: curve} if curve else {})


def _data_of(run: Run) -> tuple[tuple[str, int | None], ...]:
    """Returns the datasets of a run, as they may be published, and their rows where they are known."""
    prompts: Any = run.prompts
    rows = prompts.prompts if isinstance(prompts, OrderedPrompts) else prompts
    parts = rows.parts if isinstance(rows, MixedPrompts) else (rows,)
    counts = [len(part) if hasattr(part, "__len__") else None for part in parts]
    values = run.config.dataset or run.config.environment
    found: list[tuple[str, int | None]] = []
    for value, count in itertools.zip_longest(values, counts[: len(values)]):
        is_given = value.startswith(FROM_PYTHON)  # its name has the number of its rows
        found.append((public_name(value).removeprefix(FROM_PYTHON), None if is_given else count))
    return tuple(found)


def hub_datasets(config: TrainConfig) -> tuple[str, ...]:
    """Returns the names of a run's datasets that are of the Hub.

    Example:
        >>> hub_datasets(TrainConfig(dataset=("org/math:main:0.7", "code=mine.jsonl:0.3")))
        ('org/math',)
    """
    places = [part.place for part in read_names(config.dataset)]
    return tuple(dict.fromkeys(place.partition(":")[0] for place in places if is_hub_name(place)))


def _versions(config: TrainConfig) -> dict[str, str]:
    packages = ["torch", "transformers", *(["peft"] if config.lora_r else [])]
    packages += ["vllm"] if config.sampler == "vllm" and config.vllm_mode == "colocate" else []
    return {"grpokit": VERSION, **{name: version(name) for name in packages}}
