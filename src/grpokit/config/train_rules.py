"""The rules of `TrainConfig`, as tables. Each names the flag, the value and the fix."""

from __future__ import annotations

from .advantage_rules import ADVANTAGE_RULES
from .early_stop import is_early_stop
from .hub_rules import HUB_RULES
from .lora_rules import LORA_RULES
from .optimizer_rules import OPTIMIZER_RULES
from .rules import Rule, above_0, at_least, has_model, ranks
from .sampling_rules import sampling_rules
from .teacher_options import TEACHER_RULES

NUMBER_RULES = [
    Rule(
        "early_stop",
        lambda c: c.early_stop == "" or is_early_stop(c.early_stop),
        "expected METRIC:PATIENCE, such as eval/reward:3 (end after three evaluations that are no better)",
    ),
    Rule(
        "early_stop",
        lambda c: c.early_stop == "" or c.eval_steps > 0,
        "needs evaluations during the run; set --eval_steps",
    ),
    Rule("output_dir", lambda c: bool(c.output_dir), "is required", "(missing)"),
    *at_least(
        1,
        "prompts_per_step num_generations num_iterations updates_per_step micro_batch_tokens logging_steps max_steps "
        "eval_samples eval_generations",
    ),
    *at_least(
        0,
        "save_steps eval_steps warmup_steps log_completions record_batches save_total_limit max_skipped_steps shard_size "
        "log_tokens profile_steps device_tflops "
        "max_resample_times beta weight_decay max_grad_norm learning_rate adam_epsilon min_lr",
    ),
    Rule(
        "router_aux_loss_coef",
        lambda c: c.router_aux_loss_coef is None or 0 <= c.router_aux_loss_coef < float("inf"),
        "must be 0 or more",
    ),
    Rule("adam_beta1", lambda c: 0 <= c.adam_beta1 < 1, "must be at least 0 and below 1"),
    Rule("adam_beta2", lambda c: 0 <= c.adam_beta2 < 1, "must be at least 0 and below 1"),
    *above_0("ddp_timeout vllm_timeout vllm_max_gap"),
]

BATCH_RULES = [
    Rule(
        "updates_per_step",
        lambda c: c.prompts_per_step % c.updates_per_step == 0,
        "must divide --prompts_per_step {c.prompts_per_step}, so that groups stay whole",
    ),
    Rule(
        "shard_size",
        lambda c: c.shard_size == 0 or ranks() % c.shard_size == 0,
        "must divide the number of ranks, {ranks}",
    ),
]

LOSS_RULES = [
    Rule(
        "importance_sampling_level",
        lambda c: (
            not (c.ratio_level and c.importance_sampling_level)
            or c.ratio_level == c.importance_sampling_level
        ),
        "is another name of --ratio_level, which is {c.ratio_level}; give one of them",
    ),
    *ADVANTAGE_RULES,
    Rule(
        "ref_model",
        lambda c: not c.ref_model or c.beta > 0,
        "is not used with --beta 0; set --beta (0.04 is usual) or leave it out",
    ),
    Rule("ref_model", lambda c: not c.ref_model or has_model(c.ref_model), "has no config.json"),
    Rule("group_filter", lambda c: not c.group_filter or ":" in c.group_filter, "expected file.py:function"),
]

LAYOUT_RULES = [
    Rule(
        "share_prompts",
        lambda c: c.share_prompts != "always" or not c.compile,
        "does not go with --compile, which would compile every layer anew for it; use auto or never",
    ),
    Rule(
        "share_prompts",
        lambda c: c.share_prompts != "always" or c.packing != "packed",
        "completions that share prompts are padded, so --packing packed would do nothing; use auto for one of them",
    ),
    Rule(
        "share_prompts",
        lambda c: c.share_prompts != "always" or not c.gradient_checkpointing,
        "does not go with --gradient_checkpointing, which computes layers again in the backward; use auto or never",
    ),
    Rule(
        "compile",
        lambda c: not (c.compile and c.dtype == "float64"),
        "is for speed, and --dtype float64 for proofs; leave one of them out",
    ),
]

SAMPLER_RULES = [
    Rule(
        "sampler",
        lambda c: c.sampler in ("transformers", "vllm") or ":" in c.sampler,
        "is not one of transformers, vllm, and not file.py:name",
    ),
    Rule(
        "async_depth",
        lambda c: c.async_depth == 0 or c.sampler == "vllm",
        "needs an engine that samples while the model trains; add --sampler vllm with a server, or leave it out",
    ),
    Rule(
        "vllm_mode",
        lambda c: c.vllm_mode != "colocate" or c.sampler == "vllm",
        "is not used with --sampler {c.sampler}; add --sampler vllm",
    ),
    Rule(
        "async_depth",
        lambda c: c.vllm_mode != "colocate" or c.async_depth == 0,
        "an engine in this process does not sample while it trains; use --vllm_mode server, or leave it out",
    ),
    Rule(
        "stream_rewards",
        lambda c: not c.stream_rewards or c.sampler == "vllm",
        "needs an engine that samples on its own while rewards are computed; add --sampler vllm, or leave it out",
    ),
    Rule(
        "stream_rewards",
        lambda c: not c.stream_rewards or c.async_depth == 0,
        "with --async_depth 1 a step's completions are there when it begins; leave one of them out",
    ),
    Rule(
        "dtype",
        lambda c: c.vllm_mode != "colocate" or c.dtype != "float64",
        "vLLM does not compute in it; use float32, or --sampler transformers",
    ),
    Rule(
        "vllm_gpu_memory_utilization",
        lambda c: 0 < c.vllm_gpu_memory_utilization < 1,
        "must be above 0 and below 1",
    ),
    Rule(
        "vllm_sync",
        lambda c: c.vllm_sync == "files" or (c.sampler == "vllm" and c.vllm_mode == "server"),
        "is for a server; add --sampler vllm --vllm_mode server, or leave it out",
    ),
    Rule(
        "vllm_sync",
        lambda c: c.vllm_sync != "adapter" or c.lora_r > 0,
        "there is no adapter with --lora_r 0; set --lora_r (16 is usual), or use files",
    ),
    Rule(
        "vllm_url",
        lambda c: (
            c.vllm_url != "" and ("://" not in c.vllm_url or c.vllm_url.startswith(("http://", "https://")))
        ),
        "must be HOST:PORT, or begin with http:// or https://",
    ),
]

TRAIN_RULES = [
    *NUMBER_RULES,
    *LORA_RULES,
    *OPTIMIZER_RULES,
    *BATCH_RULES,
    *LOSS_RULES,
    *TEACHER_RULES,
    *LAYOUT_RULES,
    *SAMPLER_RULES,
    *HUB_RULES,
    *sampling_rules("eval_"),
]
