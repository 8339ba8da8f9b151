"""Configuration: frozen dataclasses, one for each command; `overlay.py` lays YAML over their defaults.

Imports nothing heavy: `grpokit --help` is built from this file. The precedence is: flags on the command line,
then the YAML file given by `--config`, then the defaults below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """The model, the data and the rewards."""

    config: str = ""
    """YAML file with any of these options; flags win over it."""
    model: str = ""
    """Directory of a Hugging Face causal language model (config, safetensors, tokenizer)."""
    dataset: str = ""
    """Prompts: a .jsonl(.gz), .json, .parquet or .csv file, a folder of them, or org/name[:config] of the Hub."""
    dataset_split: str = ""
    """Split of a folder or a Hub dataset (default: train, for eval test; or the only one)."""
    max_samples: int = 0
    """Read only this many rows of --dataset, the first ones (0: all)."""
    system_prompt: str = ""
    """System message before every chat prompt that doesn't have one."""
    reward_funcs: tuple[str, ...] = ()
    """Built-in rewards (accuracy, exact_match, format, length, ...), file.py:function, or a reward model's directory."""
    reward_weights: tuple[float, ...] = ()
    """One weight for each reward function (default: 1 each)."""
    answer_column: str = ""
    """Column with the reference answer (default: answer, solution or ground_truth, whichever is there)."""
    format_pattern: str = r"^<think>.*?</think>\s*\S"
    """Regular expression that the `format` reward looks for (. matches newlines too)."""
    soft_cache_length: int | None = None
    """soft_overlong: the last so many tokens before --max_completion_length cost (default: a fifth of it)."""
    repetition_n_grams: int = 3
    """repetition: tokens in an n-gram."""
    repetition_max_penalty: float = -1.0
    """repetition: what a completion of nothing but repetition would get; 0 or less."""
    reward_timeout: float = 120.0
    """Seconds that a call of a reward function may take before the run stops (0: as long as it likes)."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens (default: what the model's context leaves for it)."""
    long_prompts: Literal["error", "truncate_left", "drop"] = "error"
    """What to do with a prompt longer than --max_prompt_length."""
    skip_bad_rows: bool = False
    """Skip malformed rows of the dataset and say how many, instead of stopping at the first."""
    max_completion_length: int = 256
    """Longest completion in tokens; sampling stops there."""
    min_completion_length: int = 0
    """End-of-sequence is not sampled before this many tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, besides the model's end-of-sequence tokens; they stay in it."""
    temperature: float = 1.0
    """Sampling temperature. Log-probabilities everywhere are of this tempered distribution."""
    rollout_batch_size: int = 256
    """Completions sampled at once: bounds the memory of the key-value cache, changes no result."""
    decode: Literal["auto", "loop", "generate"] = "auto"
    """How transformers samples: a loop of our own where it serves the model (auto), or its generate. Same tokens."""
    share_prefill: bool = True
    """Run a prompt once for all its completions when sampling. Same tokens."""
    seed: int = 42
    """Seed of the prompt order and of every sampled token."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Compute type; parameters stay float32. auto: bfloat16 on a GPU, float32 on a CPU. float64: throughout."""
    attn_implementation: str | None = None
    """Attention of transformers: sdpa, eager, flash_attention_2, flex_attention (default: the model's)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model's directory. Off unless asked for: it may do anything."""
    num_threads: int = 0
    """CPU threads for torch (0: 1 for a model under a million parameters, which is fastest so; else torch's choice)."""


@dataclass(frozen=True)
class TrainConfig(ModelConfig):
    """Train a language model by GRPO with any loss of the family."""

    output_dir: str = "runs/grpo"
    """Where the run is written: config, metrics, completions, checkpoints, report."""
    resume_from_checkpoint: str = ""
    """A checkpoint directory, or `auto`: the newest complete one in --output_dir, else a fresh start."""

    # the loss
    loss_type: str = "grpo"
    """Policy loss: a row of `grpokit losses list` (grpo, bnpo, dr_grpo, dapo, cispo, sapo, gspo, ...)."""
    surrogate: str | None = None
    """Another surrogate in the loss's place: a name, or file.py:function of your own."""
    reduction: str | None = None
    """Another reduction: sequence_mean, rank_token_mean, token_mean, constant_length, sequence_sum, prompt_mean."""
    ratio_level: str | None = None
    """Another level of the importance ratio: token, sequence, sequence_token, sequence_product."""
    importance_sampling_level: str | None = None
    """The field's other name of --ratio_level."""
    loss_kwargs: tuple[str, ...] = ()
    """Options of a loss that have no flag of their own, as name=value (`grpokit losses show NAME` lists them)."""
    epsilon: float | None = None
    """Clip range of the importance ratio below 1 (and above, where epsilon_high is not set)."""
    epsilon_high: float | None = None
    """Clip range above 1. For cispo: the absolute cap on the ratio, at least 1."""
    epsilon_low_cap: float | None = None
    """cispo only: absolute floor of the ratio (default 0: none)."""
    delta: float | None = None
    """Bound on the ratio of tokens with a negative advantage (dual clip); must exceed 1 + epsilon_high."""
    tau_pos: float | None = None
    """sapo only: temperature of the gate where the advantage is positive."""
    tau_neg: float | None = None
    """sapo only: temperature of the gate where the advantage is negative."""
    sapo_gain: Literal["paper", "none"] | None = None
    """sapo only: `paper` scales the gate by 4/tau (slope 1 on-policy), `none` leaves it bare."""
    beta: float = 0.0
    """Coefficient of the KL penalty to the reference model (0: no reference is loaded)."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Estimator of the KL penalty (default: k3)."""
    kl_gradient: Literal["own", "k2", "ratio"] | None = None
    """Its gradient: its own, that of k2 (unbiased on-policy), or times the ratio (unbiased off-policy)."""
    entropy_coef: float | None = None
    """Coefficient of an entropy bonus."""
    top_entropy_quantile: float | None = None
    """Only this share of the update's tokens, those of highest entropy, carry the policy term."""
    correction_mode: Literal["truncate", "mask", "none"] | None = None
    """Correct for a sampler that isn't the trainer, by c = old/sampler: min(c, cap), or 0 outside a range.
    Default: none; truncate with --async_depth 1."""
    correction_level: Literal["token", "sequence_product", "sequence_geometric"] | None = None
    """What c is taken over (default: token)."""
    correction_cap: float | None = None
    """truncate: the cap (default 2)."""
    correction_low: float | None = None
    """mask: lower end of the range (default 0.5)."""
    correction_high: float | None = None
    """mask: upper end of the range (default 5)."""
    opsm_threshold: float | None = None
    """Drop sequences with a negative advantage whose mean(sampler - logp) exceeds this."""
    rejected_tokens: Literal["keep", "drop"] | None = None
    """Whether masked tokens stay in the counts (keep, the default) or leave them (drop)."""
    ref_model: str = ""
    """Directory of the reference model (default: the initial --model)."""
    advantage_estimator: Literal["group", "rloo", "reinforce_plus_plus", "opo", "gdpo"] = "group"
    """How rewards become advantages; group: against the group's mean, rloo: against the mean of the others."""
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """What `group` advantages are divided by (default: the loss's own; none for dr_grpo, else group)."""

    # a LoRA adapter instead of all weights
    lora_r: int = 0
    """Rank of a LoRA adapter, which alone is trained (0: none, all weights are). Its reference is the model without it."""
    lora_alpha: float = 32.0
    """The adapter's part is multiplied by lora_alpha / lora_r."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, by the ends of their names (q_proj v_proj ...); all-linear: all but the head."""
    lora_save: Literal["merged", "adapter"] = "merged"
    """What checkpoints, final/ and best/ hold: a model with the adapter in its weights, or the adapter alone."""

    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits (QLoRA, by bitsandbytes). With --lora_r and --lora_save adapter, on one rank."""

    # the engine that samples
    sampler: Literal["transformers", "vllm"] = "transformers"
    """What samples: the policy itself (transformers), or vLLM, which is given its weights after each step."""
    vllm_mode: Literal["server", "colocate"] = "server"
    """--sampler vllm: a server that runs already, or an engine in the trainer's process (on each rank its own)."""
    vllm_url: str = "127.0.0.1:8000"
    """--sampler vllm: the running server, HOST:PORT or a URL."""
    vllm_timeout: float = 300.0
    """--sampler vllm: seconds without any answer from the server before the run stops (it may be started anew meanwhile)."""
    vllm_sync: Literal["files", "adapter", "nccl"] = "files"
    """--vllm_mode server: it loads files of the whole model, or of the LoRA adapter alone; or weights come over NCCL."""
    vllm_gpu_memory_utilization: float = 0.3
    """--vllm_mode colocate: share of the GPU's memory for vLLM, its copy of the weights included."""
    vllm_max_gap: float = 0.05
    """--sampler vllm: largest mean difference of log-probs to the trainer's after a sync; beyond it the run stops."""
    async_depth: Literal[0, 1] = 0
    """--sampler vllm: 1 samples the next step's completions while this one trains; they are then one step old."""

    # the batch
    prompts_per_step: int = 8
    """Prompts sampled in a step."""
    num_generations: int = 8
    """Completions sampled for each prompt."""
    max_resample_times: int = 0
    """Dynamic sampling: groups whose rewards are all equal make way for further prompts, up to this many times a step."""
    mask_truncated_completions: bool = False
    """Overlong filtering: completions cut off at --max_completion_length are not trained on, nor counted."""
    num_iterations: int = 1
    """Passes over a step's completions."""
    updates_per_step: int = 1
    """Optimizer steps in each pass; must divide --prompts_per_step."""
    micro_batch_tokens: int = 8192
    """Most tokens in one forward, padding included. Memory only: changes no result."""
    packing: Literal["auto", "packed", "padded"] = "auto"
    """Rows one after the other, or padded to the longest. auto: packed where attention is varlen. Changes no result."""
    share_prompts: Literal["auto", "never", "always"] = "auto"
    """Compute a prompt once for all its completions in the forward of training. auto: where it pays. Changes no result."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: less memory, a third more time."""
    compile: bool = False
    """torch.compile each layer for training and scoring: some seconds at the start, then faster. Not for float64."""
    drop_dead_rows: bool = True
    """Leave completions that cannot move the weights (advantage 0, no KL) out of the forward: same result."""

    # the optimizer
    learning_rate: float = 1e-6
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = (
        "constant_with_warmup"
    )
    """Learning rate after warm-up: constant, or decayed to 0 at --max_steps."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    adam_beta1: float = 0.9
    """First AdamW decay rate."""
    adam_beta2: float = 0.999
    """Second AdamW decay rate."""
    adam_epsilon: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm (0: never)."""
    max_steps: int = 100
    """Steps to train, resumed ones included."""
    max_skipped_steps: int = 0
    """Skip up to this many updates of the run whose loss or gradient is NaN or infinite; the next one stops it."""

    # many processes (torchrun)
    shard_size: int = 0
    """Ranks that share one copy of the weights (0: all). The ranks of one host: hybrid sharding over hosts."""
    ddp_timeout: float = 600.0
    """Seconds that a rank waits for the others in a collective before the run stops."""

    # what is written, and when; all intervals count steps
    report_to: tuple[Literal["tensorboard", "trackio", "wandb", "swanlab"], ...] = ()
    """Trackers that get the metrics too, besides metrics.jsonl: each needs its package (grpokit[NAME])."""
    project: str = "grpokit"
    """Project of the trackers."""
    run_name: str = ""
    """Name of the run at the trackers (default: the name of --output_dir)."""
    logging_steps: int = 1
    """Print a plain line every so many steps where there is no terminal for the progress bar."""
    log_completions: int = 4
    """Groups of each step written to completions.jsonl."""
    record_batches: int = 0
    """Write the first update of this many steps to batches/, for `grpokit compare-batch`."""
    save_steps: int = 0
    """Write a checkpoint every so many steps (0: only final/, and one when a signal stops the run)."""
    save_total_limit: int = 0
    """Keep only this many checkpoints, the newest (0: all)."""
    save_dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Type of the saved weights (default: the type the model was loaded in)."""
    eval_dataset: str = ""
    """Held-out prompts: evaluated before step 0, every --eval_steps and at the end."""
    eval_split: str = ""
    """Split of --eval_dataset (default: test, or validation, or the only one)."""
    eval_steps: int = 0
    """Evaluate every so many steps (0: only before and after)."""
    eval_samples: int = 256
    """Most prompts of --eval_dataset to use."""
    eval_generations: int = 4
    """Sampled completions of each evaluation prompt; pass@k is reported for k = 1 and this many."""


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """Say what a training run takes, from a model's config.json alone: memory, micro-batches, communication."""

    ranks: int = 1
    """Processes of the run: hosts × GPUs of each."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What the ranks run on: decides what --dtype auto is, and how much of the logits is held at once."""
    device_memory: float = 0.0
    """Memory of one rank's device in GiB (0: unknown). The plan then says whether the run fits, and what would help."""
    prompt_tokens: int | None = None
    """Mean length of the prompts (default: 256, or what the model's context leaves)."""
    completion_tokens: int | None = None
    """Mean length of the completions (default: --max_completion_length)."""


@dataclass(frozen=True)
class EvalConfig(ModelConfig):
    """Evaluate a model: pass@1 greedy and sampled, and pass@k."""

    num_generations: int = 8
    """Sampled completions of each prompt (n of the pass@k estimator)."""
    pass_at_k: tuple[int, ...] = ()
    """Values of k to report (default: 1 and --num_generations)."""
    output_file: str = ""
    """Also write the figures to this JSON file."""
