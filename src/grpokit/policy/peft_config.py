"""Reads a LoraConfig of peft, as `GRPOTrainer(peft_config=...)` takes it."""

from __future__ import annotations

from typing import Any

from .lora import require_peft


def options_of_peft(config: Any) -> dict[str, Any]:
    """Returns the options of TrainConfig that mean the same as a LoraConfig of peft.

    Raises ValueError naming the first field that grpokit cannot honour exactly, such as dropout, or another rank for
    some modules.
    """
    require_peft("peft_config")
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise ValueError(f"peft_config: a {type(config).__name__}; grpokit trains peft.LoraConfig alone")
    if config.r < 1:
        raise ValueError(f"peft_config: r {config.r} must be at least 1; 16 is usual")
    targets = config.target_modules
    if targets is None or (isinstance(targets, str) and targets != "all-linear"):
        raise ValueError(
            f"peft_config: target_modules {targets!r}; expected a list of module names, or 'all-linear'"
        )
    plain = LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=targets)
    free = {
        "r",
        "lora_alpha",
        "target_modules",
        "use_rslora",
        "use_dora",
        "modules_to_save",
        "task_type",
        "fan_in_fan_out",
        "base_model_name_or_path",
        "revision",
    }
    free |= {"inference_mode", "peft_type", "peft_version", "auto_mapping"}
    for name, usual in vars(plain).items():
        if name not in free and not name.startswith("_") and getattr(config, name) != usual:
            raise ValueError(
                f"peft_config: {name} {getattr(config, name)!r} cannot be honoured exactly; leave it at {usual!r}"
            )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(f"peft_config: task_type {config.task_type}; expected CAUSAL_LM")
    names = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
    return {
        "lora_r": config.r,
        "lora_alpha": float(config.lora_alpha),
        "lora_target_modules": names,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "lora_modules_to_save": tuple(config.modules_to_save or ()),
    }
