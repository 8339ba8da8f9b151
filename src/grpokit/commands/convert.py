"""`grpokit convert-config`: converts a YAML configuration of TRL or ms-swift, and says what it could not carry over.

Their batch is counted in devices, accumulation and generation batches, and their steps are optimizer steps. Here a step
samples once, and has `updates_per_step` × `num_iterations` optimizer steps. This module converts between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.commands import ConvertConfig
from ..config.foreign import (
    ASK,
    COUNTED,
    IN_OPTIMIZER_STEPS,
    LEVELS,
    NOT_NEEDED,
    RENAMED,
    SWIFT,
    TRL_DEFAULTS,
)
from ..config.options import TrainConfig
from ..config.yaml import from_yaml
from ..runs.trackers import TRACKERS


def convert(theirs: Mapping[str, Any], processes: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Converts options of TRL or ms-swift to options of `grpokit train`.

    Args:
        theirs: their options by name.
        processes: the number of processes that their run uses.

    Returns:
        The options, and a sentence for each that was changed or left out.

    Raises:
        ValueError: their batch cannot be expressed here.
    """
    left = {str(key).lstrip("-"): value for key, value in theirs.items() if value is not None}
    ours: dict[str, Any] = {}
    said: list[str] = []
    if SWIFT & left.keys():
        said.append(
            f"ms-swift's own defaults are not carried over; set {', '.join(ASK)} where the file does not"
        )
    else:
        for name in TRL_DEFAULTS.keys() - left.keys():
            left[name] = TRL_DEFAULTS[name]
            said.append(f"{name}: {TRL_DEFAULTS[name]}, TRL's default")
    known = TrainConfig.__dataclass_fields__
    updates = _batch(left, processes, ours, said) * int(left.get("num_iterations", 1))
    for name in IN_OPTIMIZER_STEPS:
        if name in left:
            value = left.pop(name)
            if value < 0:  # the number of epochs decides
                said.append(f"{name}: {value}: is by epochs there; set a number of steps (--{name})")
                continue
            if 0 < value < 1:
                raise ValueError(f"{name} {value}: is a share of the run there; expected a number of steps")
            ours[name] = max(1, round(value / updates)) if value > 0 else 0
            if updates > 1:
                said.append(f"{name}: {value} optimizer steps are {ours[name]} steps of {updates}")
    _special(left, ours, said)
    for name, value in left.items():
        if name in NOT_NEEDED:
            said.append(f"{name}: not needed: {NOT_NEEDED[name]}")
        elif RENAMED.get(name, name) in known:
            ours[RENAMED.get(name, name)] = value
        else:
            said.append(f"{name}: {value!r} has no counterpart; left out")
    return ours, said


def _batch(left: dict[str, Any], processes: int, ours: dict[str, Any], said: list[str]) -> int:
    """Sets prompts_per_step and updates_per_step from their counts. Returns the number of updates."""
    if not left.keys() & set(COUNTED):
        return 1
    device, accumulation, steps, batch = (left.pop(name, None) for name in COUNTED)
    accumulation = accumulation or 1
    update = (device or 8) * accumulation * processes
    batch = batch or (device or 8) * processes * (steps or accumulation)
    generations = left.get("num_generations", 8)
    if batch % update or batch % generations:
        raise ValueError(
            f"generation_batch_size {batch}: expected a multiple of num_generations {generations} and of the {update} "
            f"completions of an optimizer step; is --num_processes {processes} right?"
        )
    ours["prompts_per_step"], updates = batch // generations, batch // update
    if updates > 1:
        ours["updates_per_step"] = updates
    said.append(
        f"prompts_per_step: {batch} completions at once are {batch // generations} prompts × {generations}, in {updates} "
        f"optimizer step{'s' if updates > 1 else ''}; memory is --micro_batch_tokens here, and changes no result"
    )
    return updates


def _special(left: dict[str, Any], ours: dict[str, Any], said: list[str]) -> None:
    """Converts options whose values mean something else here."""
    if left.pop("bf16", False):
        ours["dtype"] = "bfloat16"
    if left.pop("fp16", False):
        said.append("fp16: has no counterpart; dtype auto is bfloat16 on a GPU")
    if left.pop("optim", None) is not None:  # ours of that name takes other values
        said.append("optim: not needed: the optimizer is AdamW")
    _vllm(left, ours, said)
    host, port = left.pop("vllm_server_host", None), left.pop("vllm_server_port", 8000)
    if host is not None:
        ours["vllm_url"] = f"http://{host}:{port}"
    if isinstance(left.get("scale_rewards"), bool):
        left["scale_rewards"] = "group" if left["scale_rewards"] else "none"
    if "dataset" in left and isinstance(left["dataset"], list):
        first, *others = left["dataset"]
        left["dataset"] = first
        if others:
            said.append(
                f"dataset: one dataset at a time; {first} is taken, {', '.join(map(str, others))} left out"
            )
    _lora(left, ours, said)
    if left.pop("async_generate", False):
        if ours.get("vllm_mode") == "colocate":
            said.append("async_generate: sampling ahead needs a server (vllm_mode server); left out")
        else:
            ours["async_depth"] = 1
    wanted = left.pop("report_to", [])
    kept = [name for name in ([wanted] if isinstance(wanted, str) else wanted) if name in TRACKERS]
    if kept:
        ours["report_to"] = kept
    if isinstance(left.get("log_completions"), bool):  # ours is a number; completions.jsonl is always written
        left.pop("log_completions")
    times = left.pop("max_resample_times", 3)  # ms-swift's default, which acts only with dynamic_sample
    if left.pop("dynamic_sample", False):
        ours["max_resample_times"] = times


def _lora(left: dict[str, Any], ours: dict[str, Any], said: list[str]) -> None:
    """Converts the adapter's options. Without an adapter they do nothing in TRL and ms-swift either."""
    swift = bool(SWIFT & left.keys())
    given = {left.pop(name, None) for name in ("train_type", "tuner_type")}
    kinds = given - {None, "full"}
    asked = bool(left.pop("use_peft", False)) or "lora" in kinds
    by_default = swift and not kinds and "full" not in given
    if by_default:
        said.append("tuner_type: lora, ms-swift's default; with lora_r 0 all parameters are trained")
    uses = asked or by_default
    for kind in kinds - {"lora"}:
        said.append(f"tuner_type: {kind!r} has no counterpart; all parameters are trained")
    ranks = [left.pop(name, None) for name in ("lora_rank", "lora_r")]
    targets = [left.pop(name, None) for name in ("target_modules", "lora_target_modules")]
    alpha, dropout = left.pop("lora_alpha", None), left.pop("lora_dropout", None)
    if not uses:
        if any((*ranks, *targets, alpha, dropout)):
            said.append(
                "lora_*: do nothing there either, without use_peft or tuner_type lora; all parameters are trained"
            )
        return
    ours["lora_r"] = next((rank for rank in ranks if rank), 8 if swift else 16)
    if alpha is not None:
        ours["lora_alpha"] = alpha
    wanted = next((target for target in targets if target), None)
    if wanted is not None:
        ours["lora_target_modules"] = [wanted] if isinstance(wanted, str) else wanted
    elif not swift:
        said.append(
            "lora_target_modules: all-linear; TRL leaves it to peft, which takes q_proj and v_proj of most models"
        )
    if dropout:
        said.append("lora_dropout: not needed: dropout is always off")


def _vllm(left: dict[str, Any], ours: dict[str, Any], said: list[str]) -> None:
    """Converts the engine, and TRL's correction for it: on by default, a mask of whole sequences above 3."""
    uses, swift = left.pop("use_vllm", False), bool(SWIFT & left.keys())
    corrects = left.pop("vllm_importance_sampling_correction", not swift)
    mode = left.pop("vllm_importance_sampling_mode", "sequence_mask")
    caps = [left.pop(f"vllm_importance_sampling_{name}", None) for name in ("cap", "clip_max")]
    low = left.pop("vllm_importance_sampling_clip_min", None)
    served = swift or left.keys() & {"vllm_server_base_url", "vllm_server_host"}
    where = left.pop("vllm_mode", "server" if served else "colocate")  # TRL's default
    if not uses:
        left.pop("vllm_gpu_memory_utilization", None)
        return
    ours["sampler"] = "vllm"
    if where != "server":
        ours["vllm_mode"] = where
    if not corrects:
        return
    level, _, kind = mode.partition("_")
    if level not in LEVELS or kind not in ("mask", "truncate"):
        raise ValueError(
            f"vllm_importance_sampling_mode {mode}: expected token_ or sequence_, mask or truncate"
        )
    high = next((cap for cap in caps if cap is not None), 3.0)
    ours |= {"correction_mode": kind, "correction_level": LEVELS[level]}
    ours |= (
        {"correction_cap": high}
        if kind == "truncate"
        else {"correction_low": low or 0.0, "correction_high": high}
    )
    said.append(
        f"correction_mode: {kind} at {high:g}, {LEVELS[level]}: what vllm_importance_sampling_mode {mode} does"
    )


def convert_file(config: ConvertConfig) -> tuple[str, list[str]]:
    """Converts a file. Returns YAML for `grpokit train --config`, checked, and sentences about it.

    Raises:
        ValueError: the file cannot be read or converted.
    """
    import yaml

    try:
        theirs = yaml.safe_load(Path(config.file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{config.file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(theirs, dict):
        raise ValueError(f"{config.file}: expected `name: value` lines, got a {type(theirs).__name__}")
    ours, said = convert(theirs, config.num_processes)
    text = yaml.safe_dump(ours, sort_keys=False, allow_unicode=True)
    from_yaml(TrainConfig, text, config.file)  # reports a value of the wrong type now
    return text, said
