"""Options of the model, its adapter, the data, the rewards and the engine that samples: one class for each group of flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from .resume import free, sampling, steering


@dataclass(frozen=True)
class ModelOptions:
    """The model."""

    config: str = free("")
    """YAML file with any of these options; flags win over it."""
    model: str = ""
    """A causal language model: a Hugging Face directory, or org/name[@revision] of the Hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Compute dtype. Trained parameters stay float32, or float64 with float64. auto: bfloat16 on a GPU, float32 on a CPU."""
    attn_implementation: str | None = free(None)
    """Attention of transformers: sdpa, eager, flash_attention_2, flex_attention (default: the model's)."""
    trust_remote_code: bool = free(False)
    """Run Python code that comes with the model's directory. Off unless asked for: it may do anything."""
    check: Literal["quick", "full"] = free("quick")
    """What is tried before the first step. quick: layouts and sampling on a small twin of the model, and short samples of the
    model itself. full: layouts and sampling on the model itself too, in rows as long as the run's longest."""
    num_threads: int = free(0)
    """CPU threads for torch (0: 1 for a model under a million parameters, which is fastest so; else torch's choice)."""


@dataclass(frozen=True)
class LoraOptions:
    """A LoRA adapter instead of all weights."""

    lora_r: int = 0
    """Rank of the LoRA adapter; only the adapter is trained (0: train all weights). The KL reference is the model without the
    adapter."""
    lora_alpha: float = 32.0
    """The adapter's part is multiplied by lora_alpha / lora_r."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, by the ends of their names (q_proj v_proj ...); all-linear: all but the head."""
    use_rslora: bool = False
    """Multiply the adapter's part by lora_alpha / sqrt(lora_r) instead."""
    use_dora: bool = False
    """Train the length of each row of the adapted weights by itself too (DoRA)."""
    lora_modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole beside the adapter, by the ends of their names (lm_head, embed_tokens)."""
    lora_save: Literal["merged", "adapter"] = free("merged")
    """Form of the model in checkpoints, final/ and best/: with the adapter merged into its weights, or the adapter alone."""
    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits (QLoRA, by bitsandbytes). With --lora_r and --lora_save adapter. Every rank has all."""


@dataclass(frozen=True)
class DataOptions:
    """The data."""

    dataset: tuple[str, ...] = ()
    """Prompts: a .jsonl(.gz), .json, .parquet, .arrow or .csv file, a folder[:config] of them (also of save_to_disk),
    or org/name[:config] of the Hub. Several are mixed: [name=]path[:weight] (default: in proportion to their rows)."""
    dataset_split: str = ""
    """Split of a folder or a Hub dataset (default: train, for eval test; or the only one)."""
    max_samples: int = 0
    """Read only this many rows of each --dataset, the first ones (0: all)."""
    prompt_column: str = ""
    """Column that states the prompt: text is a user's message where the tokenizer has a chat template, a list is a chat
    (default: prompt, messages or question, whichever is there)."""
    system_prompt: str = ""
    """System message before every chat prompt that doesn't have one."""
    chat_template: str = ""
    """File with a chat template to use in place of the model's own. It is saved with the model."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Arguments for the chat template, as name=value: enable_thinking=false. A row's own column goes before them."""
    generation_prefix: str = ""
    """Text that begins every completion. It is part of the prompt and not trained; rewards get it with the completion."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens (default: what the model's context leaves for it)."""
    long_prompts: Literal["error", "truncate_left", "drop"] = "error"
    """What to do with a prompt longer than --max_prompt_length."""
    skip_bad_rows: bool = free(False)
    """Skip malformed rows of the dataset and say how many, instead of stopping at the first."""

    def __post_init__(self) -> None:
        """Takes one dataset as it is, in the place of a tuple of one: `TrainConfig(dataset="train.jsonl")`."""
        for name in ("dataset", "eval_dataset"):
            value = getattr(self, name, ())
            if isinstance(value, str | PurePath):
                object.__setattr__(self, name, (str(value),) if str(value) else ())


@dataclass(frozen=True)
class RewardOptions:
    """The rewards."""

    reward_funcs: tuple[str, ...] = steering(())
    """Built-in rewards (accuracy, exact_match, format, judge, ...), file.py:function, or a reward model
    (a directory, or org/name of the Hub)."""
    reward_weights: tuple[float, ...] = steering(())
    """One weight for each reward function (default: 1 each)."""
    reward_routes: tuple[str, ...] = steering(())
    """A column, then which functions score the rows with a value of it: data_source gsm8k=accuracy code=passes,format.
    Functions that aren't named here score every row."""
    answer_column: str = steering("")
    """Column with the reference answer (default: answer, solution or ground_truth, whichever is there)."""
    format_pattern: str = steering(r"^<think>.*?</think>\s*\S")
    """Regular expression that the `format` reward looks for (. matches newlines too)."""
    soft_cache_length: int | None = steering(None)
    """soft_overlong: length of the penalty zone before --max_completion_length, in tokens (default: a fifth of it)."""
    repetition_n_grams: int = steering(3)
    """repetition: tokens in an n-gram."""
    repetition_max_penalty: float = steering(-1.0)
    """repetition: what a completion of nothing but repetition would get; 0 or less."""
    cosine_min_len_value_wrong: float = steering(-0.5)
    """cosine: what a wrong completion of no tokens would get."""
    cosine_max_len_value_wrong: float = steering(0.0)
    """cosine: what a wrong completion of --cosine_max_len tokens gets."""
    cosine_min_len_value_correct: float = steering(1.0)
    """cosine: what a right completion of no tokens would get."""
    cosine_max_len_value_correct: float = steering(0.5)
    """cosine: what a right completion of --cosine_max_len tokens gets."""
    cosine_max_len: int | None = steering(None)
    """cosine: the length in tokens from which the value stays the same (default: --max_completion_length)."""
    stream_rewards: bool = steering(False)
    """--sampler vllm: call the reward functions for each group that is complete, while the others are still sampled."""
    reward_timeout: float = free(120.0)
    """Seconds that a call of a reward function may take before the run stops (0: as long as it likes)."""


@dataclass(frozen=True)
class EpisodeOptions:
    """Tools and environments: what answers the model between two turns."""

    tools: tuple[str, ...] = sampling(())
    """Functions that the model may call: file.py:function, with type hints and a docstring."""
    environment: tuple[str, ...] = sampling(())
    """Environment that answers the model: file.py:Class or openenv:URL. Name several (name=...); column `environment` chooses."""
    max_turns: int = sampling(10)
    """Most turns of the model in an episode."""
    max_turn_length: int = sampling(0)
    """Longest turn in tokens (0: what --max_completion_length leaves)."""
    tool_parser: str = sampling("")
    """file.py:function that finds the calls in a turn (default: the tokenizer's own, or the common forms)."""
    tool_timeout: float = sampling(60.0)
    """Seconds that a call of a tool or an environment may take (0: as long as it likes)."""
    max_tool_output: int = sampling(0)
    """Most tokens of one tool's answer; a longer one is cut in the middle (0: no limit)."""
    max_environment_errors: int = free(0)
    """Most episodes that a run drops because their environment failed. One more ends the run (0: the first one ends it)."""
    environment_workers: int = free(32)
    """Most calls of sync tools and environments at once. Changes no result."""


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling."""

    max_completion_length: int = sampling(256)
    """Longest completion in tokens; sampling stops there."""
    min_completion_length: int = sampling(0)
    """End-of-sequence is not sampled before this many tokens."""
    stop: tuple[str, ...] = sampling(())
    """Strings that end a completion, besides the model's end-of-sequence tokens; they stay in it."""
    temperature: float = sampling(1.0)
    """Sampling temperature. Log-probabilities everywhere are of this tempered distribution."""
    top_p: float = sampling(1.0)
    """Sample from the likeliest tokens whose probabilities add up to this (1: from all)."""
    top_k: int = sampling(0)
    """Sample from this many of the likeliest tokens (0: from all)."""
    min_p: float = sampling(0.0)
    """Sample from the tokens with at least this share of the likeliest token's probability (0: from all)."""
    repetition_penalty: float = sampling(1.0)
    """Above 1: tokens that the prompt or the completion already has become less likely."""
    seed: int = 42
    """Seed of the prompt order and of every sampled token."""
    rollout_batch_size: int = free(256)
    """Completions sampled at once: bounds the memory of the key-value cache, changes no result."""
    decode: Literal["auto", "loop", "generate"] = free("auto")
    """How transformers samples: grpokit's loop, transformers' generate, or auto (loop if it supports the model). Same tokens."""
    share_prefill: bool = free(True)
    """Run a prompt once for all its completions when sampling. Same tokens."""
    turn_cache_gib: float = free(2.0)
    """Memory in GiB for the keys and values that episodes keep from turn to turn when transformers samples (0: none are kept).
    Same tokens."""


@dataclass(frozen=True)
class EngineOptions:
    """The engine that samples."""

    sampler: str = sampling("transformers")
    """The engine: the policy itself (transformers), vLLM (vllm), which gets the weights after each step, or file.py:name."""
    async_depth: Literal[0, 1] = sampling(0)
    """--sampler vllm: 1 samples the next step's completions while this one trains; they are then one step old."""
    vllm_mode: Literal["server", "colocate"] = free("server")
    """--sampler vllm: a server that runs already, or an engine in the trainer's process (on each rank its own)."""
    vllm_url: str = free("127.0.0.1:8000")
    """--sampler vllm: the running server, HOST:PORT or a URL."""
    vllm_timeout: float = free(300.0)
    """--sampler vllm: seconds without any answer from the server before the run stops (it may be started anew meanwhile)."""
    vllm_sync: Literal["files", "adapter", "nccl"] = free("files")
    """--vllm_mode server: it loads files of the whole model, or of the LoRA adapter alone; or weights come over NCCL."""
    vllm_gpu_memory_utilization: float = free(0.3)
    """--vllm_mode colocate: share of the GPU's memory for vLLM, its copy of the weights included."""
    vllm_max_gap: float = free(0.05)
    """--sampler vllm: largest mean difference of log-probs to the trainer's after a sync; beyond it the run stops."""
