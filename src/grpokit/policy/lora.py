"""LoRA (arXiv 2106.09685) by peft: W + (alpha / r)·B·A in the place of W, and A and B alone are trained.

The adapter is put into the model in place. So the model stays the class that it was: its parts, its cache and its head
are found as ever, and with the adapter switched off it is the model that the run began with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..common.hub import is_hub_model

NAME = "default"  # of the adapter, as peft calls a model's only one
DESCRIPTION = "adapter_config.json"  # marks a directory that holds an adapter


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter to be trained: Lora(r=16, alpha=32, target_modules=("all-linear",), base="models/Qwen", seed=42)."""

    r: int
    alpha: float
    target_modules: tuple[str, ...]
    base: str  # directory of the model that it stands beside
    seed: int  # of A's first values; B's are 0
    quantized: bool = False  # the frozen weights are kept in 4 bits: QLoRA (arXiv 2305.14314)

    def config(self) -> Any:
        """As peft has it. No dropout: log-probs must be repeatable."""
        _require_peft("--lora_r")
        from peft import LoraConfig

        targets = self.target_modules
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType] - a float serves as well
            target_modules=targets[0] if targets == ("all-linear",) else list(targets),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base if is_hub_model(self.base) else str(Path(self.base).resolve()),
        )


def attach(model: Any, lora: Lora, frozen: torch.dtype, trained: torch.dtype) -> None:
    """Put the adapter into `model`: its parameters in type `trained`, the others frozen in type `frozen`.

    Raises ValueError naming --lora_target_modules where it names no module, or one that log-probs don't go through
    by a plain product: embeddings and the head.
    """
    config = lora.config()
    from peft import inject_adapter_in_model

    named = " ".join(lora.target_modules)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    linear = {name.rpartition(".")[2] for name, kind in kinds.items() if "Linear" in kind or kind == "Conv1D"}
    plain = ", ".join(sorted(linear - {"lm_head"}))
    config.fan_in_fan_out = (
        "Conv1D" in kinds.values()
    )  # GPT-2's layers keep their weights the other way round
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():  # what is quantized isn't
            tensor.data = tensor.data.to(frozen)
    try:
        # On every rank the same, and no other draw of the run is another for it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lora.seed)
            inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ValueError(
            f"--lora_target_modules {named}: cannot be put into {type(model).__name__}: expected all-linear, or some of "
            f"{plain}"
        ) from error
    places = adapted_layers(model)
    for target in lora.target_modules:
        if target != "all-linear" and not any(f".{place}".endswith(f".{target}") for place in places):
            raise ValueError(
                f"--lora_target_modules {named}: {type(model).__name__} has no module {target}; there are {plain}"
            )
    for name, layer in places.items():
        if not isinstance(layer, _linear(lora.quantized)) or layer is model.get_output_embeddings():
            raise ValueError(
                f"--lora_target_modules {named}: {name} is an embedding, the head, or no plain linear layer; name others, of "
                f"{plain}"
            )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trained)


def _linear(quantized: bool) -> tuple[type, ...]:
    """peft's layers that are an adapter beside a plain linear one."""
    from peft.tuners.lora import Linear

    if not quantized:
        return (Linear,)
    from peft.tuners.lora.bnb import Linear4bit

    return Linear, Linear4bit


def quantization_options(compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What from_pretrained needs to keep weights in 4 bits, as QLoRA has them: normal floats, their scales quantized too."""
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports] # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--load_in_4bit: needs bitsandbytes, which is not installed; pip install grpokit[quantization]"
        ) from error
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": how, "device_map": {"": device}}


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The modules that have an adapter beside their weight, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it, the model is what it was before the adapter came."""
    layers = adapted_layers(model).values()
    # Not by peft's enable_adapters, which also turns requires_grad off, and FSDP2 has copied that already.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merge_adapter(
    weights: Mapping[str, Tensor], model: nn.Module, whole: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """A state dict with the adapter → the one of a model without: W + (alpha / r)·B·A under W's own name, one by one.

    `whole` is what is done to each tensor first. The sum is taken in float32, or in W's type where that is wider; the
    model's own weights stay as they are.
    """
    layers = adapted_layers(model)
    for name, tensor in weights.items():
        if ".lora_" in name:
            continue
        weight = whole(tensor)
        place, _, kind = name.rpartition(".base_layer.")
        if place in layers and kind == "weight":
            wide = torch.promote_types(weight.dtype, torch.float32)
            a, b = (whole(weights[f"{place}.lora_{half}.{NAME}.weight"]).to(wide) for half in "AB")
            product = layers[place].scaling[NAME] * (b @ a)
            # GPT-2's layers keep their weights the other way round.
            weight = weight.to(wide) + (product.T if layers[place].fan_in_fan_out else product)
        yield name.replace(".base_layer.", "."), weight


def write_adapter(directory: Path, weights: dict[str, Tensor], lora: Lora, dtype: torch.dtype) -> None:
    """Write the adapter alone, from a state dict that has it: a directory that peft, transformers and vLLM load."""
    mine = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor.to(dtype).contiguous()
        for name, tensor in weights.items()
        if ".lora_" in name
    }
    save_file(mine, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    lora.config().save_pretrained(directory)


def base_of(path: str) -> str | None:
    """The model that the adapter in directory `path` stands beside; None where the directory holds no adapter.

    Raises ValueError naming the directory where its description says none that is here.
    """
    file = Path(path) / DESCRIPTION
    if (Path(path) / "config.json").is_file() or not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model {path}: {DESCRIPTION} cannot be read: {error}") from error
    if not is_hub_model(str(base)) and not (Path(str(base)) / "config.json").is_file():
        raise ValueError(
            f"--model {path}: is an adapter of {base}, which is no directory with a config.json, and no model of the Hub; "
            f"correct base_model_name_or_path in its {DESCRIPTION}"
        )
    return str(base)


def merge_into(model: Any, path: str) -> Any:
    """`model` with the adapter in directory `path` added to its weights, in float32."""
    _require_peft(f"--model {path}")
    from peft import PeftModel

    whole = PeftModel.from_pretrained(model.float(), path, local_files_only=True).merge_and_unload()
    return whole.requires_grad_(True)  # peft has frozen it


def _require_peft(wanted_by: str) -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{wanted_by}: needs peft, which is not installed; pip install grpokit[peft]"
        ) from error


def options_of_peft(config: Any) -> dict[str, Any]:
    """The options of TrainConfig that mean the same as a LoraConfig of peft.

    Raises ValueError naming the first field that grpokit cannot honour exactly: dropout, rsLoRA, DoRA, other modules to
    save, ranks of their own for some modules, and so on.
    """
    _require_peft("peft_config")
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
    return {"lora_r": config.r, "lora_alpha": float(config.lora_alpha), "lora_target_modules": names}
