"""Options of training: one class for each group of flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .resume import free, optimizer, sampling, steering


@dataclass(frozen=True)
class LossOptions:
    """The loss."""

    loss_type: str = steering("grpo")
    """Policy loss: a row of `grpokit losses list` (grpo, bnpo, dr_grpo, dapo, cispo, sapo, gspo, ...)."""
    surrogate: str | None = steering(None)
    """Another surrogate in the loss's place: a name, or file.py:function of your own."""
    reduction: str | None = steering(None)
    """Another reduction: sequence_mean, rank_token_mean, token_mean, constant_length, sequence_sum, prompt_mean."""
    ratio_level: str | None = steering(None)
    """Another level of the importance ratio: token, sequence, sequence_token, sequence_product."""
    importance_sampling_level: str | None = steering(None)
    """Alias of --ratio_level."""
    loss_kwargs: tuple[str, ...] = steering(())
    """Options of a loss that have no flag of their own, as name=value (`grpokit losses show NAME` lists them)."""
    epsilon: float | None = steering(None)
    """Clip range of the importance ratio below 1 (and above, where epsilon_high is not set)."""
    epsilon_high: float | None = steering(None)
    """Clip range above 1. For cispo: the absolute cap on the ratio, at least 1."""
    epsilon_low_cap: float | None = steering(None)
    """cispo only: absolute floor of the ratio (default 0: none)."""
    delta: float | None = steering(None)
    """Bound on the ratio of tokens with a negative advantage (dual clip); must exceed 1 + epsilon_high."""
    tau_pos: float | None = steering(None)
    """sapo only: temperature of the gate where the advantage is positive."""
    tau_neg: float | None = steering(None)
    """sapo only: temperature of the gate where the advantage is negative."""
    sapo_gain: Literal["paper", "none"] | None = steering(None)
    """sapo only: `paper` scales the gate by 4/tau (slope 1 on-policy), `none` leaves it bare."""
    beta: float = steering(0.0)
    """Coefficient of the KL penalty to the reference model (0: no reference is loaded)."""
    ref_model: str = steering("")
    """The reference model: a directory, or org/name[@revision] of the Hub (default: the initial --model)."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = steering(None)
    """Estimator of the KL penalty (default: k3)."""
    kl_gradient: Literal["own", "k2", "ratio"] | None = steering(None)
    """Gradient of the KL penalty. own: the estimator's. k2: k2's (unbiased on-policy). ratio: the estimator times the
    importance ratio (unbiased off-policy)."""
    kl_in_reward: bool = steering(False)
    """Subtract beta times the KL to the reference from each completion's reward, instead of adding a term to the loss."""
    sync_ref_model: bool = False
    """Move the reference towards the policy every --ref_model_sync_steps steps."""
    ref_model_mixup_alpha: float = steering(0.6)
    """--sync_ref_model: the reference becomes alpha * policy + (1 - alpha) * reference."""
    ref_model_sync_steps: int = steering(512)
    """--sync_ref_model: steps from one move of the reference to the next."""
    entropy_coef: float | None = steering(None)
    """Coefficient of an entropy bonus."""
    top_entropy_quantile: float | None = steering(None)
    """Only this share of the update's tokens, those of highest entropy, carry the policy term."""
    router_aux_loss_coef: float | None = steering(None)
    """Coefficient of a mixture of experts' router auxiliary loss (default: the model's own, where its config has
    output_router_logits true; 0: none)."""


@dataclass(frozen=True)
class AdvantageOptions:
    """The advantages."""

    advantage_estimator: str = steering("group")
    """How rewards become advantages: group, rloo, reinforce_plus_plus, reinforce_plus_plus_global, opo, gdpo, maxrl,
    remax, gpg, loo_std, pass_k, or file.py:function of your own."""
    scale_rewards: Literal["group", "batch", "none"] | None = steering(None)
    """Divisor of `group` advantages (default: the loss's own; none for dr_grpo, else group)."""
    turn_discount: float | None = steering(None)
    """Judge each turn of an episode by the rewards from there on, discounted so much from turn to turn; and so the tokens
    between those to which a reward function gives rewards of their own (default: a completion has one advantage)."""
    advantage_epsilon: float = steering(1e-4)
    """Added to a standard deviation before advantages are divided by it (verl: 1e-6)."""


@dataclass(frozen=True)
class CorrectionOptions:
    """Corrections for a sampler that isn't the trainer."""

    correction: Literal["trl", "swift", "verl-tis", "icepop"] | None = steering(None)
    """What another trainer does for a sampler that isn't the trainer; the options below change it."""
    correction_mode: Literal["truncate", "mask", "reject", "none"] | None = steering(None)
    """Correct for a sampler that isn't the trainer, by c = old/sampler: min(c, cap), 0 outside a range, or rejection
    without weights. Default: none; truncate with --async_depth 1."""
    correction_level: Literal["token", "sequence_product", "sequence_geometric", "sequence_max"] | None = (
        steering(None)
    )
    """Level of c, or of what reject bounds: per token, or per sequence (default: token)."""
    correction_cap: float | None = steering(None)
    """truncate: the cap (default 2)."""
    correction_low: float | None = steering(None)
    """truncate: the smallest weight (default 0); mask: lower end of the range (default 0.5); reject: of k1's, as a ratio
    (default 1 / --correction_high)."""
    correction_high: float | None = steering(None)
    """mask: upper end of the range (default 5); reject: upper bound of the estimator, for k1 as a ratio."""
    correction_estimator: Literal["k1", "k2", "k3"] | None = steering(None)
    """reject: the estimator of the KL divergence that is bounded (default: k1)."""
    correction_keep: Literal["sequence_product", "sequence_geometric"] | None = steering(None)
    """Give weights only to completions whose own weight, a product or a geometric mean, is inside bounds."""
    correction_keep_low: float | None = steering(None)
    """--correction_keep: the lower bound (default 0)."""
    correction_keep_high: float | None = steering(None)
    """--correction_keep: the upper bound (default: none)."""
    correction_normalize: bool = steering(False)
    """Divide the weights by their mean over the update."""
    opsm_threshold: float | None = steering(None)
    """Drop sequences with a negative advantage whose mean(sampler - logp) exceeds this."""
    rejected_tokens: Literal["keep", "drop"] | None = steering(None)
    """Whether tokens that the correction masks still count in the loss's denominators: keep (default) or drop."""


@dataclass(frozen=True)
class BatchOptions:
    """The batch."""

    prompts_per_step: int = 8
    """Prompts sampled in a step."""
    num_generations: int = sampling(8)
    """Completions sampled for each prompt."""
    shuffle: bool = True
    """Draw the training prompts in a new random order for each epoch; off: in the order of the data."""
    sampler_order: str = ""
    """file.py:function of your own that says which rows a step takes: a curriculum, whose state is in the checkpoint."""
    lazy_tokenize: Literal["auto", "always", "never"] = "auto"
    """Read and tokenize rows of --dataset when a step needs them, instead of all at the start. auto: over 50 MB or 100,000
    rows, where rows can be read one by one."""
    max_resample_times: int = 0
    """Dynamic sampling: groups without any advantage make way for further prompts, up to this many times a step."""
    group_filter: str = steering("")
    """file.py:function of your own that says which scored groups are trained on (default with --max_resample_times: those
    to which the advantage estimator gives an advantage)."""
    mask_truncated_completions: bool = steering(False)
    """Overlong filtering: completions cut off at --max_completion_length are not trained on, nor counted."""
    num_iterations: int = steering(1)
    """Passes over a step's completions."""
    updates_per_step: int = steering(1)
    """Optimizer steps in each pass; must divide --prompts_per_step."""
    micro_batch_tokens: int = free(8192)
    """Most tokens in one forward, padding included. Memory only: changes no result."""
    packing: Literal["auto", "packed", "padded"] = free("auto")
    """Layout of a micro-batch: packed (samples concatenated) or padded. auto: packed with flash or flex attention. Changes
    no result."""
    share_prompts: Literal["auto", "never", "always"] = free("auto")
    """Compute a prompt once for all its completions in the forward of training. auto: where it pays. Changes no result."""
    gradient_checkpointing: bool = free(False)
    """Compute activations again in the backward instead of keeping them: less memory, a third more time."""
    compile: bool = free(False)
    """torch.compile each layer for training and scoring: some seconds at the start, then faster. Not for float64."""
    drop_dead_rows: bool = steering(True)
    """Leave completions that cannot move the weights (advantage 0, no KL) out of the forward: same result."""


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer."""

    optim: str = "adamw"
    """The optimizer: adamw, muon, adamw_8bit (moments in 8 bits), or file.py:function of your own, f(named_parameters,
    learning_rate)."""
    learning_rate: float = optimizer(1e-06)
    """Peak learning rate."""
    lr_scheduler_type: str = optimizer("constant_with_warmup")
    """Learning rate after warm-up, by transformers' names: constant, constant_with_warmup, linear, cosine,
    cosine_with_restarts, polynomial, inverse_sqrt, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay."""
    lr_scheduler_kwargs: tuple[str, ...] = optimizer(())
    """Options of the schedule as name=value, such as num_cycles=2 or num_decay_steps=20."""
    min_lr: float = optimizer(0.0)
    """The learning rate at which a schedule that falls ends."""
    warmup_steps: int = optimizer(0)
    """Steps over which the learning rate rises linearly from 0."""
    warmup_ratio: float = optimizer(0.0)
    """The same as a share of --max_steps. Give one of the two."""
    muon_momentum: float = optimizer(0.95)
    """--optim muon: decay rate of the momentum of its matrices."""
    freeze_parameters: tuple[str, ...] = ()
    """Regular expressions: parameters whose name has a match are not trained."""
    trainable_parameters: tuple[str, ...] = ()
    """Regular expressions: parameters that are trained although --freeze_parameters matches them."""
    adam_beta1: float = optimizer(0.9)
    """First AdamW decay rate."""
    adam_beta2: float = optimizer(0.999)
    """Second AdamW decay rate."""
    adam_epsilon: float = optimizer(1e-08)
    """Added to AdamW's denominator."""
    weight_decay: float = optimizer(0.0)
    """AdamW's decoupled weight decay. Norms, biases and other vectors have none."""
    max_grad_norm: float = optimizer(1.0)
    """Gradients are scaled down to this norm (0: never)."""
    max_steps: int = optimizer(100)
    """Steps to train, resumed ones included."""
    num_train_epochs: float = optimizer(0.0)
    """Instead of --max_steps: train for as many steps as take this many times the dataset's rows (0: --max_steps says it)."""
    max_skipped_steps: int = free(0)
    """Skip up to this many updates of the run whose loss or gradient is NaN or infinite; the next one stops it."""


@dataclass(frozen=True)
class RankOptions:
    """Many processes, started by torchrun."""

    shard_size: int = free(0)
    """Ranks that share one copy of the weights (0: all). Set it to the ranks per host to shard within each host and replicate
    across hosts."""
    ddp_timeout: float = free(600.0)
    """Seconds that a rank waits for the others in a collective before the run stops."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation on held-out prompts."""

    eval_dataset: tuple[str, ...] = free(())
    """Held-out prompts: evaluated before step 0, every --eval_steps and at the end. Several sets have names: math=a.jsonl."""
    eval_split: str = free("")
    """Split of --eval_dataset (default: test, or validation, or the only one)."""
    eval_steps: int = free(0)
    """Evaluate every so many steps (0: only before and after)."""
    eval_samples: int = free(256)
    """Most prompts of --eval_dataset to use."""
    eval_generations: int = free(4)
    """Sampled completions of each evaluation prompt; pass@k is reported for k = 1 and this many."""
    early_stop: str = optimizer("")
    """METRIC:PATIENCE: end the run once so many evaluations in a row were no better, such as eval/reward:3."""
    eval_reward_funcs: tuple[str, ...] = free(())
    """Rewards of the evaluation; name=reward for one of several sets (default: --reward_funcs)."""
    eval_temperature: float | None = free(None)
    """Temperature of the evaluation's sampled completions (default: --temperature)."""
    eval_top_p: float | None = free(None)
    """Top-p of the evaluation's completions (default: --top_p)."""
    eval_top_k: int | None = free(None)
    """Top-k of the evaluation's completions (default: --top_k)."""
    eval_min_p: float | None = free(None)
    """Min-p of the evaluation's completions (default: --min_p)."""
    eval_repetition_penalty: float | None = free(None)
    """Repetition penalty of the evaluation's completions (default: --repetition_penalty)."""
    eval_max_completion_length: int | None = free(None)
    """Longest completion in an evaluation, in tokens (default: --max_completion_length)."""
    eval_min_completion_length: int | None = free(None)
    """Shortest completion in an evaluation, in tokens (default: --min_completion_length)."""
    eval_stop: tuple[str, ...] | None = free(None)
    """Strings that end a completion in an evaluation (default: --stop)."""


@dataclass(frozen=True)
class LoggingOptions:
    """Logging; all intervals count steps."""

    report_to: tuple[Literal["tensorboard", "trackio", "wandb", "swanlab"], ...] = free(())
    """Trackers that get the metrics too, besides metrics.jsonl: each needs its package (grpokit[NAME])."""
    project: str = free("grpokit")
    """Project of the trackers."""
    run_name: str = free("")
    """Name of the run at the trackers (default: the name of --output_dir)."""
    logging_steps: int = free(1)
    """Print a plain line every so many steps where there is no terminal for the progress bar."""
    log_completions: int = free(4)
    """Groups of each step written to completions.jsonl."""
    record_batches: int = free(0)
    """Write the first update of this many steps to batches/, for `grpokit compare-batch`."""
    log_tokens: int = free(0)
    """Number of completions of each step whose tokens are recorded for `grpokit watch`, with the loss's effect on them."""
    profile_steps: int = free(0)
    """Profile this many steps after the first one: a trace, and a table of where time and memory go, in profile/."""
    device_tflops: float = free(0.0)
    """Peak TFLOP/s of one device, for the metrics mfu/* (default: the data sheet's for known GPUs in bfloat16, else no mfu/*)."""


@dataclass(frozen=True)
class CheckpointOptions:
    """The run's directory and its checkpoints."""

    output_dir: str = free("runs/grpo")
    """Where the run is written: config, metrics, completions, checkpoints, report."""
    resume_from_checkpoint: str = free("")
    """A checkpoint directory, or `auto`: the newest complete one in --output_dir, else a fresh start."""
    save_steps: int = free(0)
    """Write a checkpoint every so many steps (0: only final/, and one when a signal stops the run)."""
    save_total_limit: int = free(0)
    """Keep only this many checkpoints, the newest (0: all)."""
    save_dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = free(None)
    """Type of the saved weights (default: the type the model was loaded in)."""


@dataclass(frozen=True)
class HubOptions:
    """The Hugging Face Hub. The token is HF_TOKEN's, or that of `hf auth login`."""

    push_to_hub: str = free("")
    """ORG/NAME of the Hub that final/ is uploaded to at the end of the run. It is made, and the token tried, at the start."""
    hub_private_repo: bool = free(False)
    """Make the repository of --push_to_hub private where it is new (off: as the account has it)."""
    hub_revision: str = free("")
    """Branch of the repository to upload to; it is made where it is new (default: main)."""
