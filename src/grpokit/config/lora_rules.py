"""The rules of the LoRA adapter's options."""

from __future__ import annotations

from .rules import Rule, is_adapter

LORA_RULES = [
    Rule("lora_r", lambda c: c.lora_r >= 0, "must be 0 (no adapter) or more; 16 is usual"),
    Rule("lora_alpha", lambda c: c.lora_alpha > 0, "must be above 0; twice --lora_r is usual"),
    Rule(
        "lora_target_modules",
        lambda c: len(c.lora_target_modules) > 0,
        "name some modules, or all-linear",
        "(empty)",
    ),
    Rule(
        "lora_target_modules",
        lambda c: "all-linear" not in c.lora_target_modules or len(c.lora_target_modules) == 1,
        "all-linear cannot be combined with other names",
    ),
    Rule(
        "model",
        lambda c: (
            not is_adapter(c.model) or c.lora_r == 0 or (c.lora_save == "merged" and c.vllm_sync != "adapter")
        ),
        "is itself an adapter, so a new adapter would have no base model on disk; use --lora_save merged and not "
        "--vllm_sync adapter, or train from a merged model",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or c.lora_r > 0,
        "4-bit weights cannot be trained; add --lora_r (16 is usual)",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or c.lora_save == "adapter",
        "an adapter cannot be merged into 4-bit weights; add --lora_save adapter",
    ),
    Rule(
        "load_in_4bit",
        lambda c: not c.load_in_4bit or c.dtype != "float64",
        "goes with float32 or bfloat16, not with --dtype float64",
    ),
    Rule(
        "load_in_4bit",
        lambda c: (
            not c.load_in_4bit
            or c.sampler != "vllm"
            or (c.vllm_mode == "server" and c.vllm_sync == "adapter")
        ),
        "vLLM can be sent only the adapter, and only on a server; add --vllm_sync adapter and --vllm_mode server",
    ),
    *(
        Rule(
            flag,
            lambda c, flag=flag: not getattr(c, flag) or c.vllm_sync != "adapter",
            "vLLM cannot serve such an adapter; use --vllm_sync files or nccl",
        )
        for flag in ("use_dora", "lora_modules_to_save")
    ),
]
