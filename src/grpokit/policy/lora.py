"""LoRA (arXiv 2106.09685) by peft: W + (alpha / r)·B·A replaces W, and only A and B are trained.

The adapter is injected into the model in place. The model keeps its class, so its parts, cache and head are found as
usual. With the adapter switched off, it is the model that the run began with.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..common.hub import is_hub_model
from ..common.text import did_you_mean, one_line

NAME = "default"  # peft's name for a model's only adapter
DESCRIPTION = "adapter_config.json"  # marks the directory of an adapter


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter to train.

    Example:
        >>> lora = Lora(r=16, alpha=32, target_modules=("all-linear",), base="models/Qwen", seed=42)
    """

    r: int
    alpha: float
    target_modules: tuple[str, ...]
    base: str  # directory of the frozen model
    seed: int  # seeds A's initial values; B starts at 0
    quantized: bool = False  # the frozen weights are in 4 bits: QLoRA (arXiv 2305.14314)
    # The modules that all-linear stands for, where some linear layers can't have an adapter; empty: peft's own choice.
    chosen: tuple[str, ...] = ()
    rank_stabilized: bool = False  # the product is multiplied by alpha / √r (rsLoRA, arXiv 2312.03732)
    dora: bool = False  # the lengths of the rows are trained by themselves (DoRA, arXiv 2402.09353)
    whole_modules: tuple[str, ...] = ()  # modules of which a copy is trained whole

    def config(self) -> Any:
        """Returns peft's config. It has no dropout, because log-probs must be repeatable."""
        require_peft("--lora_r")
        from peft import LoraConfig

        targets = self.chosen or self.target_modules
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType] - a float works too
            target_modules=targets[0] if targets == ("all-linear",) else list(targets),
            use_rslora=self.rank_stabilized,
            use_dora=self.dora,
            modules_to_save=list(self.whole_modules) or None,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base if is_hub_model(self.base) else str(Path(self.base).resolve()),
        )


def read_as_experts(model: Any, names: set[str]) -> set[str]:
    """Returns those names of modules that peft takes for parts of a model's stacked experts.

    In some mixtures of experts, peft takes `gate_proj` for such a part. An adapter on a plain layer of that name, such as a
    shared expert's, could be trained, but peft could not load it again.
    """
    require_peft("--lora_r")
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=sorted(names))
    convert_peft_config_for_transformers(config, model, None)
    return names - set(config.target_modules or ())


def attach(model: Any, lora: Lora, frozen: torch.dtype, trained: torch.dtype) -> None:
    """Injects the adapter into `model`.

    Args:
        model: the model, changed in place.
        lora: the adapter.
        frozen: dtype of the base weights, which are frozen.
        trained: dtype of the adapter's parameters.

    Raises:
        ValueError: --lora_target_modules names no module, or one that is not a plain linear layer (an embedding, the head);
            or --lora_modules_to_save names none, or one that can't be trained by itself.
    """
    _check_whole_modules(model, lora)
    config = lora.config()
    from peft import inject_adapter_in_model

    named = " ".join(lora.target_modules)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    linear = {name.rpartition(".")[2] for name, kind in kinds.items() if "Linear" in kind or kind == "Conv1D"}
    plain = ", ".join(sorted(linear - {"lm_head"} - read_as_experts(model, linear)))
    # GPT-2 stores its weights transposed.
    config.fan_in_fan_out = "Conv1D" in kinds.values()
    for parameter in model.parameters():
        if parameter.is_floating_point():  # quantized weights are not
            parameter.data = parameter.data.to(frozen)
    for buffer in model.buffers():  # rotary frequencies in a narrow dtype would be another model's
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(trained)
    try:
        # Initialises the same values on every rank, without advancing the run's random state.
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


def _check_whole_modules(model: Any, lora: Lora) -> None:
    """Raises ValueError where a module of --lora_modules_to_save is missing, or tied to another one."""
    named, flag = dict(model.named_modules()), f"--lora_modules_to_save {' '.join(lora.whole_modules)}"
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    are_tied = head.weight is embedding.weight
    usual = (
        "its head and embedding are one tensor, and can't be named"
        if are_tied
        else "lm_head and embed_tokens are usual"
    )
    possible = [n for n, module in named.items() if not are_tied or module not in (head, embedding)]
    for target in lora.whole_modules:
        found = [module for name, module in named.items() if f".{name}".endswith(f".{target}")]
        if not found:
            raise ValueError(
                f"{flag}: {type(model).__name__} has no module {target}{did_you_mean(target, possible)}; {usual}"
            )
        if are_tied and any(module in (head, embedding) for module in found):
            raise ValueError(
                f"{flag}: the head and the embedding of {type(model).__name__} are one tensor, which a copy would untie; leave "
                f"{target} out"
            )


def _linear(quantized: bool) -> tuple[type, ...]:
    """Returns peft's classes of linear layers with an adapter."""
    from peft.tuners.lora import Linear

    if not quantized:
        return (Linear,)
    from peft.tuners.lora.bnb import Linear4bit

    return Linear, Linear4bit


def quantization_options(compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Returns from_pretrained's options for 4-bit weights as in QLoRA: normal floats, with quantized scales."""
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
    """Returns the modules that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def saved_modules(model: nn.Module) -> dict[str, Any]:
    """Returns the modules of which a copy is trained whole, by name: peft's wrappers of the first module and its copy."""
    return {name: module for name, module in model.named_modules() if "modules_to_save" in module._modules}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Switches the adapter off: the model is the one that the run began with."""
    layers = [*adapted_layers(model).values(), *saved_modules(model).values()]
    # peft's enable_adapters would also clear requires_grad, which FSDP2 has copied already.
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
    """Merges the adapter of a state dict into the weights: W + (alpha / r)·B·A under W's own name, one tensor at a time.

    The sum is computed in float32, or in W's dtype if it is wider. With DoRA, each of its rows then gets its trained length.
    A module that was trained whole takes the first one's place. The model's own weights do not change.

    Args:
        weights: a state dict with the adapter.
        model: the model that it belongs to.
        whole: is applied to each tensor first; gathers it if it is sharded.
    """
    layers = adapted_layers(model)
    for name, tensor in weights.items():
        copied = ".original_module." in name
        if ".lora_" in name or (
            copied and name.replace(".original_module.", f".modules_to_save.{NAME}.") in weights
        ):
            continue
        weight = whole(tensor)
        place, _, kind = name.rpartition(".base_layer.")
        if place in layers and kind == "weight":
            wide = torch.promote_types(weight.dtype, torch.float32)
            a, b = (whole(weights[f"{place}.lora_{half}.{NAME}.weight"]).to(wide) for half in "AB")
            product = layers[place].scaling[NAME] * (b @ a)
            # GPT-2 stores its weights transposed.
            turned = layers[place].fan_in_fan_out
            weight = (weight.T if turned else weight).to(wide) + product
            lengths = weights.get(f"{place}.lora_magnitude_vector.{NAME}.weight")
            if lengths is not None:
                weight = (whole(lengths).to(wide) / torch.linalg.norm(weight, dim=1))[:, None] * weight
            weight = weight.T if turned else weight
        yield own_name(name), weight


def own_name(name: str) -> str:
    """Returns the name that a tensor has without the adapter.

    Example:
        >>> own_name("lm_head.modules_to_save.default.weight")
        'lm_head.weight'
    """
    return name.replace(".base_layer.", ".").replace(f".modules_to_save.{NAME}.", ".")


def write_adapter(directory: Path, weights: dict[str, Tensor], lora: Lora, dtype: torch.dtype) -> None:
    """Writes the adapter alone: a directory that peft, transformers and vLLM load.

    Args:
        directory: an existing directory.
        weights: a state dict that contains the adapter.
        lora: the adapter's settings.
        dtype: the dtype to write.
    """
    mine = {
        f"base_model.model.{_peft_name(name)}": tensor.to(dtype).contiguous()
        for name, tensor in weights.items()
        if ".lora_" in name or ".modules_to_save." in name
    }
    save_file(mine, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    lora.config().save_pretrained(directory)


def _peft_name(name: str) -> str:
    """Returns the name of a trained tensor in peft's files."""
    if ".lora_magnitude_vector." in name:
        return name.removesuffix(f".{NAME}.weight")
    return own_name(name).replace(f".{NAME}.", ".")


def base_of(path: str, flag: str = "--model") -> str | None:
    """Returns the base model of the adapter in directory `path`; None where the directory holds no adapter.

    Raises:
        ValueError: the adapter's config names no base model that exists here.
    """
    file = Path(path) / DESCRIPTION
    if (Path(path) / "config.json").is_file() or not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{flag} {path}: {DESCRIPTION} cannot be read: {error}") from error
    if not is_hub_model(str(base)) and not (Path(str(base)) / "config.json").is_file():
        raise ValueError(
            f"{flag} {path}: is an adapter of {base}, which is no directory with a config.json, and no model of the Hub; "
            f"correct base_model_name_or_path in its {DESCRIPTION}"
        )
    return str(base)


def merge_into(model: Any, path: str, flag: str = "--model") -> Any:
    """Returns `model` with the adapter in directory `path` merged into its weights, in float32.

    Where the adapter comes with new tokens, the model is given room for them.

    Raises:
        ValueError: the adapter's tensors are not those that its config describes.
    """
    require_peft(f"{flag} {path}")
    from peft import PeftModel
    from peft.utils import load_peft_weights

    shapes = {name: tensor.shape for name, tensor in load_peft_weights(path, device="cpu").items()}
    rows = [shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight")]
    if rows and rows[0] != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model.float(), path, local_files_only=True)
    missing = [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]
    if missing:
        raise ValueError(
            f"{flag} {path}: the adapter lacks weights, which would be random: {one_line(missing[0], 200)}; its keys, such as "
            f"{next(iter(shapes), 'none')}, are not those of its base model"
        )
    return adapted.merge_and_unload().requires_grad_(True)  # peft has frozen it


def require_peft(wanted_by: str) -> None:
    """Raises ValueError, naming what needs it, where peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{wanted_by}: needs peft, which is not installed; pip install grpokit[peft]"
        ) from error
