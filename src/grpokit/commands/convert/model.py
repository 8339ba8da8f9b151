"""Converts the model, its dtype, the adapter, the engine that samples, and the optimizer."""

from __future__ import annotations

import json
import re
from typing import Any

from ...common.hub import is_hub_model
from ...config.conversion.correction import convert_correction
from ...config.conversion.draft import Draft, listed, shown
from ...config.foreign_defaults import SWIFT_LEARNING_RATE
from ...config.schedule import NO_FUNCTIONS, SCHEDULES

ATTENTION = {
    "flash_attn": "flash_attention_2",
    "flash_attention": "flash_attention_2",
    "flash_attention_2": "flash_attention_2",
}
PEFT_TARGETS = ["q_proj", "v_proj"]  # peft's own choice for Llama, Qwen, Mistral and Gemma


def convert_model(draft: Draft) -> None:
    """Converts the model's name, revision and attention, and the dtype."""
    inside = draft.take("model_init_kwargs", {})
    for name, value in (inside if isinstance(inside, dict) else {}).items():
        draft.left.setdefault("model_revision" if name == "revision" else str(name), value)
    model = draft.take("model_name_or_path", draft.take("model"))
    revision = draft.take("model_revision")
    if model is not None:
        if revision not in (None, "main", "master"):
            model = f"{model}@{revision}" if is_hub_model(str(model)) else model
        draft.put("model", model, "model_name_or_path", "model")
        _says_where_from(draft, str(model))
    for path in listed(draft.take("adapters")):
        draft.say(f"adapters: {path}: an adapter that was trained before is --model here; left out")
    attention = draft.take("attn_implementation", draft.take("attn_impl"))
    if attention is not None:
        draft.put(
            "attn_implementation",
            ATTENTION.get(str(attention), attention),
            "attn_impl",
            "attn_implementation",
        )
    _dtype(draft)
    if "torch_compile" in draft.left:
        draft.put("compile", draft.take_flag("torch_compile"), "torch_compile")


def _says_where_from(draft: Draft, model: str) -> None:
    if draft.trainer == "swift" and is_hub_model(model) and not draft.take_flag("use_hf"):
        draft.say(f"model: {model}: ms-swift takes it from ModelScope, grpokit from the Hugging Face Hub")
    draft.take("use_hf")


def _dtype(draft: Draft) -> None:
    """Sets the compute type. bf16 is TRL's default unless fp16 is set; ms-swift has the model's own."""
    older, newer = draft.take("torch_dtype"), draft.take("dtype")
    weights = str(newer if newer is not None else older or "auto").removeprefix("torch.")
    half, brain = draft.take_flag("fp16"), draft.take_flag("bf16")
    if half or weights == "float16":
        draft.say("fp16: has no counterpart; dtype auto is bfloat16 on a GPU")
        return
    if brain or weights == "bfloat16":
        draft.put("dtype", "bfloat16", "bf16", "torch_dtype", "dtype")
    elif draft.trainer == "trl" or weights == "float32":
        draft.put("dtype", "float32", "bf16", "torch_dtype", "dtype")
    else:
        draft.say("dtype: auto; ms-swift takes that of the model's config.json")
    if weights == "bfloat16":
        draft.say("dtype: parameters stay float32 here, and are computed with in bfloat16")


def convert_adapter(draft: Draft) -> bool:
    """Converts LoRA. Returns whether an adapter is trained."""
    swift = draft.trainer == "swift"
    usual = draft.take_word("tuner_type")
    kind = draft.take_word("train_type", usual) if swift else ""
    uses = kind == "lora" if swift else draft.take_flag("use_peft")
    if swift and kind not in ("lora", "full"):
        draft.say(f"tuner_type: {shown(kind)} has no counterpart; all parameters are trained")
    if uses and swift and not draft.given & {"train_type", "tuner_type"}:
        draft.say("tuner_type: lora, ms-swift's default; with lora_r 0 all parameters are trained")
    names = ("lora_rank", "lora_r", "target_modules", "lora_target_modules", "lora_alpha", "lora_dropout")
    rank, short, modules, targets, alpha, dropout = (draft.take(name) for name in names)
    four_bits = draft.take_flag("load_in_4bit")
    more = {name: draft.take_flag(name) for name in ("use_rslora", "use_dora")}
    whole = listed(draft.take("modules_to_save" if swift else "lora_modules_to_save"))
    if not uses:
        if draft.given & set(names):
            draft.say(
                "lora_*: do nothing there either, without use_peft or tuner_type lora; all parameters are trained"
            )
        return False
    draft.put(
        "lora_r", rank if swift else short, "lora_r", "lora_rank", "use_peft", "tuner_type", "train_type"
    )
    draft.put("lora_alpha", alpha)
    wanted = listed(modules if modules is not None else targets)
    if wanted:
        draft.put("lora_target_modules", wanted, "lora_target_modules", "target_modules")
    elif not swift:
        draft.put("lora_target_modules", PEFT_TARGETS, "use_peft")
        draft.say(
            "lora_target_modules: q_proj and v_proj, which peft takes for most models where TRL's file names none"
        )
    for name in filter(more.get, more):
        draft.put(name, True)
    if whole:
        draft.put("lora_modules_to_save", whole, "modules_to_save", "lora_modules_to_save")
    if dropout != 0:
        draft.say("lora_dropout: not needed: dropout is always off (0.05 is their default)")
    if four_bits:
        draft.put("load_in_4bit", True)
        draft.put("lora_save", "adapter", "load_in_4bit")
    return True


def convert_engine(draft: Draft) -> None:
    """Converts vLLM, and the correction for it."""
    uses = draft.take_flag("use_vllm")
    hosts, ports = listed(draft.take("vllm_server_host")), listed(draft.take("vllm_server_port", 8000))
    urls = listed(draft.take("vllm_server_base_url"))
    swift = draft.trainer == "swift"
    default = "server" if (swift or urls or hosts) and "vllm_mode" not in draft.given else "colocate"
    where = draft.take("vllm_mode", default) if "vllm_mode" in draft.given else default
    draft.take("vllm_mode")
    convert_correction(draft, uses)
    ahead = draft.take_flag("async_generate")
    memory, patience = draft.take("vllm_gpu_memory_utilization"), draft.take("vllm_server_timeout")
    if not uses:
        return
    draft.put("sampler", "vllm", "use_vllm")
    if where == "server":
        _server(draft, urls, hosts, ports)
        if patience is not None:
            draft.put("vllm_timeout", patience, "vllm_server_timeout")
    else:
        draft.put("vllm_mode", where, "use_vllm")
        if memory is not None:
            draft.put("vllm_gpu_memory_utilization", memory)
    if ahead and where == "server":
        draft.put("async_depth", 1, "async_generate")
        draft.put("correction_mode", draft.ours.get("correction_mode", "none"), "async_generate")
    elif ahead:
        draft.say("async_generate: sampling ahead needs a server (vllm_mode server); left out")


def _server(draft: Draft, urls: list[Any], hosts: list[Any], ports: list[Any]) -> None:
    """Sets the server: one, where they may have several."""
    servers = [str(url) for url in urls] or [
        f"http://{host}:{ports[min(number, len(ports) - 1)]}" for number, host in enumerate(hosts)
    ]
    if not servers:
        return
    draft.put("vllm_url", servers[0], "vllm_server_base_url", "vllm_server_host")
    if len(servers) > 1:
        draft.say(f"vllm_url: one server at a time; {servers[0]} is taken, {', '.join(servers[1:])} left out")


def convert_optimizer(draft: Draft, has_adapter: bool, per_step: int = 1) -> None:
    """Converts the optimizer, its numbers, its schedule, and what it trains. `per_step`: their optimizer steps in one step."""
    _kind(draft)
    rate = draft.take_number("learning_rate")
    if rate is None:
        rate = SWIFT_LEARNING_RATE["lora" if has_adapter else "full"]
    draft.put("learning_rate", rate)
    draft.put("weight_decay", draft.take_number("weight_decay", 0.0))
    _schedule(draft, per_step)
    _frozen(draft)


def _kind(draft: Draft) -> None:
    """Converts the name of the optimizer. ms-swift has muon under another option."""
    kind = str(draft.take("optim", "adamw_torch"))
    if draft.trainer == "swift" and draft.left.get("optimizer") == "muon":
        kind = str(draft.take("optimizer"))
    if "8bit" in kind and "adamw" in kind:
        draft.put("optim", "adamw_8bit", "optim")
        if "paged" in kind:
            draft.say(f"optim: {kind}: the moments are in 8 bits here, and not paged")
    elif kind == "muon":
        draft.put("optim", "muon", "optim", "optimizer")
        draft.say("optim: muon's step is scaled to AdamW's here, so that a learning rate for AdamW is right")
    elif not kind.startswith("adamw"):
        draft.unsupported("optim", kind, "has no counterpart: there are adamw, adamw_8bit and muon")
    elif "optim" in draft.given:
        draft.say("optim: not needed: the optimizer is AdamW")


def _schedule(draft: Draft, per_step: int) -> None:
    """Converts the schedule and its options, of which those in steps are in optimizer steps there."""
    schedule, details = draft.take_word("lr_scheduler_type"), draft.take("lr_scheduler_kwargs", {})
    if schedule not in SCHEDULES:
        why = NO_FUNCTIONS.get(schedule, "has no counterpart")
        draft.unsupported("lr_scheduler_type", schedule, f"{why}; constant_with_warmup is taken")
        return
    draft.put("lr_scheduler_type", schedule)
    if isinstance(details, str):
        try:
            details = json.loads(details)
        except ValueError:
            details = {"": details}
    if not isinstance(details, dict) or "" in details:
        draft.unsupported("lr_scheduler_kwargs", details, "is no dict of options")
        return
    counted: dict[str, Any] = dict(details)
    if isinstance(counted.get("min_lr"), int | float):
        draft.put("min_lr", counted.pop("min_lr"), "lr_scheduler_kwargs")
    for name, value in details.items():
        if name.endswith("_steps") and isinstance(value, int | float):
            counted[name] = max(1, round(value / per_step))
    if counted:
        draft.put("lr_scheduler_kwargs", [f"{name}={value}" for name, value in counted.items()])
    for name in counted:
        if name.endswith("_steps") and per_step > 1:
            draft.say(f"{name}: {details[name]} optimizer steps are {counted[name]} steps of {per_step}")


def _frozen(draft: Draft) -> None:
    """Converts ms-swift's frozen parameters: prefixes of names, or regular expressions."""
    if draft.trainer != "swift":
        return
    for name in ("freeze_parameters", "trainable_parameters"):
        prefixes, pattern = listed(draft.take(name)), draft.take(f"{name}_regex")
        patterns = [f"^{re.escape(str(prefix))}" for prefix in prefixes] + ([str(pattern)] if pattern else [])
        if patterns:
            draft.put(name, patterns, name, f"{name}_regex")
