"""Loads policies and tokenizers from model directories, and probes what a model can do."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..common.console import quiet_transformers
from ..common.hub import model_directory
from ..common.text import first_line
from ..parallel import ALONE, World, shard
from .architecture import layers
from .freeze import freeze
from .lora import Lora, attach, base_of, merge_into, quantization_options
from .lora_targets import choose_modules
from .policy import Policy, resolve_dtype
from .probes import probe_head, probe_layouts
from .whole import check_report, check_whole, damaged_weights

log = logging.getLogger(__name__)


def load_policy(
    source: str | Any,
    *,
    dtype: str,
    temperature: float,
    device: torch.device,
    world: World = ALONE,
    shard_size: int = 0,
    gradient_checkpointing: bool = False,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    lora: Lora | None = None,
    frozen: tuple[Sequence[str], Sequence[str]] = ((), ()),
    probe: bool = True,
    flag: str = "--model",
    saves: bool = False,
) -> Policy:
    """Loads a causal language model as a Policy, without dropout, its parameters in float32 (float64) and sharded.

    With `lora`, only the adapter is float32 and trained; the base weights are frozen, in the compute dtype.

    Args:
        source: a directory, org/name[@revision] of the Hub, or a loaded PreTrainedModel, which is changed in place.
        dtype: the compute dtype: auto, float32, bfloat16 or float64.
        temperature: the sampling temperature; log-probs are of the tempered distribution.
        device: where the parameters go.
        world: the ranks.
        shard_size: ranks that share one copy of the weights (0: all).
        gradient_checkpointing: compute activations again in the backward.
        attn_implementation: attention of transformers (None: the model's).
        trust_remote_code: run Python code that comes with the model.
        lora: the adapter to train in place of all weights.
        frozen: regular expressions of parameters to freeze, and of exceptions that stay trained; see `freeze`.
        probe: compare the model's logits with those of grpokit's head.
        flag: the option that named the model, for messages.
        saves: whether the whole model will be saved, so that half of one is refused.

    Returns:
        The policy, in eval mode.

    Raises:
        ValueError: it cannot be loaded as a causal language model, its logits are not finite, or its head does something
            that grpokit's doesn't know.
    """
    compute = resolve_dtype(dtype, device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if compute == torch.float64:
        options["experts_implementation"] = "eager"  # grouped matmuls know no float64
    if lora is not None and lora.quantized:
        options |= quantization_options(compute, device)
    path = source if isinstance(source, str) else source.config._name_or_path or type(source).__name__
    model, stored = (
        _load(path, options, flag, saves) if isinstance(source, str) else (source, stored_dtypes(source))
    )
    _keep_4_bits(model)
    apply_softcap(model, attn_implementation)
    model.config.use_cache = True
    dropped = remove_dropout(model)
    if dropped and world.is_main:
        log.warning("dropout is off: %d modules of %s had one; log-probs must be repeatable", dropped, path)
    model.eval()  # routers, layers and adapters act at random or not at all in train mode
    main = dtype_of_most(model, stored)
    policy = Policy(model, temperature, compute, main, {n: d for n, d in stored.items() if d != main})
    if gradient_checkpointing:  # what is computed again in the backward must be computed in the same type
        again = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), policy.computing())}
        model.gradient_checkpointing_enable(again)
        policy.recomputed = tuple(m for m in model.modules() if getattr(m, "gradient_checkpointing", False))
    freeze(model, *frozen)  # before sharding, which notes what is trained
    _place_parameters(policy, lora, device, world, shard_size)
    _note_layouts(policy, world)
    if probe:
        probe_head(policy, path, flag)
    return policy


def _keep_4_bits(model: Any) -> None:
    """Keeps bitsandbytes from packing 4-bit weights anew for CPUs with AVX512-BF16.

    It does so in place at the first forward without gradient, for shapes of some sizes alone. That forward then differs from
    those of training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _note_layouts(policy: Policy, world: World) -> None:
    """Notes whether samples may be packed, and why prompts can't be shared."""
    said = world.gather_json(probe_layouts(policy))  # If one rank can't compute a layout, no rank uses it.
    policy.packs = all(packs for packs, _ in said)
    policy.shares_not = next((why for _, why in said if why is not None), None)
    if policy.recomputed:  # each computation of a layer would append to the cache
        policy.shares_not = "with --gradient_checkpointing, layers are computed again in the backward"


def _place_parameters(
    policy: Policy, lora: Lora | None, device: torch.device, world: World, shard_size: int
) -> None:
    """Puts the adapter in, shards the parameters over the ranks, and gives each its dtype."""
    model, compute = policy.model, policy.compute_dtype
    master = torch.float64 if compute == torch.float64 else torch.float32
    if lora is not None:
        policy.lora, skipped = choose_modules(model, lora)
        if skipped and world.is_main:
            log.warning("LoRA: no adapter is possible on the modules called %s", ", ".join(skipped))
        attach(model, policy.lora, frozen=compute, trained=master)
    if world.size == 1:
        policy.to(device)
    # Sharded as stored and widened afterwards: no rank ever holds the whole model in full precision.
    shard(policy, layers(model), world, shard_size, compute, master)
    if lora is None:
        policy.to(master)
    if world.size == 1:
        for parameter in policy.parameters():
            # A copy outside of the mapped file, whose offsets are not aligned: matmuls may round differently there, and a
            # resumed run would differ in the last bit.
            parameter.data = parameter.data.clone()


def _load(path: str, options: dict[str, Any], flag: str, refuses: bool) -> tuple[Any, dict[str, torch.dtype]]:
    """Loads a model whole, and the dtype of each of its tensors in the directory. An adapter is merged into its base."""
    from transformers import AutoModelForCausalLM

    path = model_directory(path, flag)
    base = base_of(path, flag)
    source = model_directory(base or path, flag)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype="auto",
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_report refuses them, and names them
                **options,
            )
        model, report = loaded
        check_report(report, source, flag)
        check_whole(model, source, flag, refuses)
        stored = stored_dtypes(model)
        return (model if base is None else merge_into(model, path, flag)), stored
    except SafetensorError as error:
        raise ValueError(f"{flag} {path}: {damaged_weights(source)}: {first_line(error)}") from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        if str(error).startswith(flag):
            raise
        raise ValueError(
            f"{flag} {path}: cannot be loaded as a causal language model: {first_line(error)}"
        ) from error


def apply_softcap(model: Any, chosen: str | None) -> None:
    """Chooses the eager attention where sdpa would leave out the softcap of the model's attention scores, as Gemma 2's.

    `chosen` is the user's --attn_implementation, which is only warned of.
    """
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if not softcap or model.config._attn_implementation != "sdpa":
        return
    if chosen is not None:
        log.warning("--attn_implementation %s: leaves out the attention's softcap of %g", chosen, softcap)
    else:
        model.set_attn_implementation("eager")
        log.warning(
            "%s: attention is eager, because sdpa leaves out its softcap of %g", type(model).__name__, softcap
        )


def dtype_of_most(model: Any, stored: Mapping[str, torch.dtype]) -> torch.dtype:
    """Returns the dtype of most of the model's numbers: the one that its directory is saved in."""
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in model.named_parameters():
        dtype = stored.get(name, parameter.dtype)
        if dtype.is_floating_point:  # weights in 4 bits are bytes
            sizes[dtype] += parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else model.dtype


def stored_dtypes(model: Any) -> dict[str, torch.dtype]:
    """Returns the dtype in which each floating-point tensor of a model was loaded, by name.

    Some stay in float32 beside weights in bfloat16, and are saved so.
    """
    tensors = model.state_dict(keep_vars=True).items()
    return {name: tensor.dtype for name, tensor in tensors if tensor.is_floating_point()}


def compile_layers(policy: Policy) -> None:
    """Compiles each layer by torch.compile, for any number and length of samples. Sampling runs the layers uncompiled.

    Layers are compiled one by one, because FSDP2 gathers them one by one. They share one compilation.
    """
    for layer in layers(policy.model):
        layer.compile(dynamic=True)
    # The compiler treats a layer's cache index as a constant, so sharing prompts would compile every layer separately,
    # once per pass.
    policy.shares_not = "--compile would have to recompile every layer to continue from a cache"


def skeleton(path: str, flag: str, attn_implementation: str | None, trust_remote_code: bool = False) -> Any:
    """Loads a causal language model without its weights: shapes alone, on torch's meta device.

    Args:
        path: a directory, or a model of the Hub.
        flag: the option that named it, for messages.
        attn_implementation: attention of transformers (None: sdpa).
        trust_remote_code: run Python code that comes with the model.

    Returns:
        The model. Its parameters have shapes and no values.

    Raises:
        ValueError: its config.json describes no causal language model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    # A kernel for packed samples keeps the same activations as sdpa, and may not be installed where a run is planned.
    attention = "eager" if attn_implementation == "eager" else "sdpa"
    path = model_directory(path, flag)
    path = model_directory(base_of(path) or path, flag)
    try:
        trust = {"trust_remote_code": trust_remote_code}
        described = AutoConfig.from_pretrained(path, local_files_only=True, **trust)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(described, attn_implementation=attention, **trust)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        StrictDataclassError,
    ) as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{flag} {path}: its config.json does not describe a causal language model that transformers knows: {first}"
        ) from error


def read_context(path: str, flag: str = "--model", trust_remote_code: bool = False) -> int | None:
    """Reads a model's longest context in tokens from its config.json alone; None where it doesn't say.

    Args:
        path: a directory, or a model of the Hub. An adapter has the context of its base.
        flag: the option that named it, for messages.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ValueError: its config.json can't be read.
    """
    from transformers import AutoConfig

    found = model_directory(path, flag)
    found = model_directory(base_of(found, flag) or found, flag)
    try:
        described = AutoConfig.from_pretrained(
            found, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"{flag} {path}: cannot be loaded as a causal language model: {first_line(error)}"
        ) from error
    return context_length(described)


def context_length(config: Any) -> int | None:
    """Returns the longest context in tokens that a model's config names, or None."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """Loads the tokenizer of a model's directory, or of a model of the Hub. Raises ValueError naming it."""
    from transformers import AutoTokenizer

    path = model_directory(path, "--model")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--model {path}: has no tokenizer that can be loaded: {first_line(error)}"
        ) from error


def remove_dropout(model: nn.Module) -> int:
    """Set every dropout to 0 and return how many modules had one. The saved config keeps its values."""
    found = 0
    for module in model.modules():
        rates = [
            name
            for name, value in vars(module).items()
            if ("dropout" in name or "layerdrop" in name) and isinstance(value, float) and value > 0
        ]
        if isinstance(module, nn.Dropout) and module.p > 0:
            rates.append("p")
        for name in rates:
            setattr(module, name, 0.0)
        found += bool(rates)
    return found


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """All tokens that end a completion: the model directory's (chat models name several) and the tokenizer's.

    Raises ValueError where there is none.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = list(named) if isinstance(named, list | tuple) else [named]
    ids.append(tokenizer.eos_token_id)
    unique = list(dict.fromkeys(i for i in ids if i is not None))
    if not unique:
        raise ValueError("--model: neither its tokenizer nor its generation_config.json names an eos token")
    return unique
