"""Every metric that a run logs, declared once with its kind and meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..types import Metric, MetricKind


class Declared(NamedTuple):
    """A metric's kind and meaning."""

    kind: MetricKind
    meaning: str


# Names follow TRL's where it has the metric, so that dashboards carry over. `<name>` is a reward function's name.
METRICS: dict[str, Declared] = {
    "reward": Declared("mean", "weighted sum of the reward functions, mean over completions that have one"),
    "reward/kl": Declared(
        "mean", "the part of the reward that is the KL penalty, −β·Σ(old − ref) (--kl_in_reward)"
    ),
    "reward/unscored": Declared(
        "mean", "share of completions to which no reward function applied: nothing is learned from them"
    ),
    "reward/length_correlation": Declared(
        "mean",
        "correlation of reward and length within groups whose rewards differ: near 1, longer completions get the higher reward",
    ),
    "reward_std": Declared("mean", "standard deviation of the reward within a group, mean over groups"),
    "frac_reward_zero_std": Declared(
        "mean", "share of groups whose rewards are all equal: they teach nothing"
    ),
    "resampled_groups": Declared(
        "sum", "groups without any advantage that made way for further prompts (--max_resample_times)"
    ),
    "rewards/<name>/mean": Declared("mean", "this reward function, over completions that it applies to"),
    "rewards/<name>/std": Declared("derived", "its standard deviation over the same completions"),
    "judge/refusals": Declared("sum", "completions that the judge refused to score, and that got None"),
    "judge/malformed": Declared(
        "sum", "completions for which the judge's answer had no score, and that got None"
    ),
    "judge/too_long": Declared(
        "sum", "completions that did not fit into the judge's context, and that got None"
    ),
    "judge/errors": Declared("sum", "requests that failed and were sent again"),
    "judge/cached": Declared("sum", "completions whose verdict was in --judge_cache"),
    "completions/mean_length": Declared("mean", "tokens of a completion, end-of-sequence included"),
    "completions/min_length": Declared("min", "the shortest completion"),
    "completions/max_length": Declared("max", "the longest completion"),
    "completions/clipped_ratio": Declared("mean", "share of completions cut off at --max_completion_length"),
    "completions/mean_terminated_length": Declared("mean", "tokens of the completions that were not cut off"),
    "entropy": Declared(
        "mean", "entropy of the distribution each token was sampled from, in nats, over all tokens"
    ),
    "turns/mean": Declared("mean", "turns of the model in an episode"),
    "turns/max": Declared("max", "most turns of an episode"),
    "tools/call_frequency": Declared("mean", "calls of tools, per episode"),
    "tools/failure_frequency": Declared("mean", "share of calls that were answered by an error"),
    "tools/<name>/calls": Declared("sum", "calls of this tool in the step"),
    "completions/trainable": Declared("mean", "share of an episode's tokens that the model wrote"),
    "endings/<name>": Declared(
        "mean", "share of episodes that ended so: done, no_call, turns, length, error"
    ),
    "loss": Declared(
        "mean", "the update's loss, mean over the step's updates; near 0 at ratio 1 by construction"
    ),
    "loss/policy": Declared("mean", "the policy's part of the loss, where there are other parts"),
    "loss/kl": Declared("mean", "part of the KL penalty to the reference, with its coefficient"),
    "loss/entropy": Declared("mean", "part of the entropy bonus, with its coefficient"),
    "loss/router": Declared("mean", "part of the router auxiliary loss, with its coefficient"),
    "loss/teacher": Declared("mean", "part of the KL to the teacher, with its coefficient"),
    "teacher/kl": Declared("mean", "KL of the policy to the teacher per token, k1"),
    "aux_loss": Declared(
        "mean",
        "router auxiliary loss of a mixture of experts, without its coefficient; mean over the step's updates",
    ),
    "grad_norm": Declared("mean", "gradient norm before clipping, mean over the step's updates"),
    "learning_rate": Declared("mean", "learning rate of the step"),
    "clip_ratio/low_mean": Declared(
        "mean", "share of tokens below the clip range with A < 0 (cispo: at the floor)"
    ),
    "clip_ratio/high_mean": Declared(
        "mean", "share of tokens above the clip range with A > 0 (cispo: at the cap)"
    ),
    "clip_ratio/region_mean": Declared("mean", "share of tokens clipped either way"),
    "clip_ratio/delta_mean": Declared("mean", "share of tokens with A < 0 whose ratio is over delta"),
    "gate/mean": Declared("mean", "how open sapo's gate is, 4σ(1−σ): 1 on-policy, 0 closed"),
    "ratio/mean": Declared("mean", "importance ratio π/π_old, over live tokens"),
    "ratio/max": Declared("max", "largest importance ratio"),
    "ratio/ess": Declared("derived", "effective sample size (Σρ)² / (n·Σρ²), as a share of the live tokens"),
    "ratio/clamped": Declared("mean", "share of tokens whose log-ratio was beyond ±20 and lost its gradient"),
    "kl": Declared("mean", "KL to the reference per token, by --kl_estimator (k3)"),
    "entropy/trainer": Declared("mean", "entropy of the policy being trained, over live tokens"),
    "clip_cov/selected": Declared("mean", "share of tokens that lost their gradient for their covariance"),
    "kl_cov/selected": Declared("mean", "share of tokens under kl_cov's penalty"),
    "m2po/kept": Declared("mean", "share of tokens kept under the bound on the second moment"),
    "reward/greedy": Declared(
        "mean", "mean reward of the prompts' greedy completions (--advantage_estimator remax)"
    ),
    "sampler_kl": Declared("mean", "KL of the sampler to the trainer at the start of the step, k3 estimator"),
    "sampler/kl_k1": Declared("mean", "KL of the sampler to the trainer, k1: mean(sampler − old)"),
    "sampler/logp_diff_mean": Declared("mean", "mean |old − sampler| of the log-probs"),
    "sampler/logp_diff_max": Declared("max", "largest |old − sampler|"),
    "sampler/chi2": Declared("mean", "χ² divergence, mean of c² − 1 with c = old/sampler"),
    "sampler/kept_mass": Declared(
        "mean", "share of the full distribution that top_p, top_k, min_p and bans have kept, per token"
    ),
    "sampler/ppl": Declared("mean", "perplexity of a completion under the sampler, mean over completions"),
    "sampler/trainer_ppl": Declared(
        "mean", "perplexity of a completion under the trainer at the start of the step"
    ),
    "sampler/log_ppl_diff": Declared(
        "mean", "log-perplexity of a completion under the trainer minus the sampler's"
    ),
    "sampler/chi2_seq": Declared(
        "mean", "χ² divergence of whole completions, mean of c² − 1 with c the product of old/sampler"
    ),
    "sampler/ess": Declared("derived", "effective sample size of the weights c, as a share of the tokens"),
    "sampler/truncated": Declared("mean", "share of tokens whose weight c was cut to a bound"),
    "sampler/staleness": Declared(
        "mean",
        "optimizer steps between the weights that sampled a completion and those at the start of the step "
        "(--async_depth 1)",
    ),
    "sampler/masked": Declared(
        "mean", "share of tokens whose weight is 0, because they or their completion are outside a range"
    ),
    "opsm/dropped": Declared("mean", "share of tokens in sequences that OPSM dropped"),
    "frac_tokens_dropped": Declared(
        "mean", "share of trainable tokens whose sample was dropped before the forward (A = 0)"
    ),
    "skipped_updates": Declared("sum", "updates skipped because their loss or gradient was not finite"),
    "tokens_per_second": Declared(
        "mean", "completion tokens sampled and learned from, per second of the step"
    ),
    "tokens_per_second/<phase>": Declared(
        "mean", "the same completion tokens, per second of one phase: rollout or learn"
    ),
    "tflops/<phase>": Declared(
        "mean",
        "TFLOP/s that a rank's device has achieved in the phase, from the model's shapes: rollout or learn",
    ),
    "mfu/<phase>": Declared(
        "mean", "model FLOPs utilization: tflops/<phase> as a share of the device's peak (--device_tflops)"
    ),
    "memory/<phase>": Declared(
        "max",
        "peak memory of the phase in GiB: the allocator's on a GPU, the process's on a CPU; host: resident memory",
    ),
    "num_tokens": Declared("sum", "tokens of prompts and completions in the step"),
    "time/step": Declared("max", "seconds of the whole step"),
    "time/rollout": Declared(
        "max", "seconds of sampling; with --async_depth 1, seconds spent waiting for it"
    ),
    "time/reward": Declared("max", "seconds in the reward functions, after sampling"),
    "time/reward_streamed": Declared(
        "max",
        "seconds in the reward functions for one group after the other, a part of time/rollout (--stream_rewards)",
    ),
    "time/learn": Declared("max", "seconds of forward, backward and optimizer steps"),
    "time/imbalance": Declared(
        "max", "work of the busiest rank over the mean, largest of the step's updates"
    ),
    "time/environment": Declared(
        "max", "seconds that the episode which waited longest waited for its tools and environment"
    ),
    "time/teacher": Declared("max", "seconds in which teachers score the completions"),
    "time/tokens": Declared("max", "seconds of recording tokens, a part of time/learn (--log_tokens)"),
    "time/sync": Declared("max", "seconds of handing the new weights to the sampler"),
}


# Metrics of the machine, which differ from run to run though the training is the same.
BY_PHASE = ("tokens_per_second", "tflops", "mfu", "memory")


def is_of_machine(name: str) -> bool:
    """Tells whether a metric measures the machine: two runs with the same seed differ in it.

    Example:
        >>> is_of_machine("time/step"), is_of_machine("memory/learn"), is_of_machine("reward")
        (True, True, False)
    """
    return name.split("/")[0] in ("time", *BY_PHASE)


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Returns name → number, in the order of METRICS. A metric that measured nothing is left out."""
    order = {name: place for place, name in enumerate(METRICS)}
    names = sorted(metrics, key=lambda name: (order.get(declared_name(name), len(order)), name))
    numbers = {name: metrics[name].value for name in names}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def is_taken(name: str) -> bool:
    """Tells whether a name is a metric of the run, so that a reward function can't log another by it.

    Example:
        >>> is_taken("kl"), is_taken("rewards/mine/mean"), is_taken("mine/tokens")
        (True, True, False)
    """
    groups = ("rewards", "reward", "eval", "tools", "endings", "judge")
    return name == "step" or declared_name(name) in METRICS or name.split("/")[0] in groups


def declared_name(name: str) -> str:
    """Returns the key of METRICS that declares `name`: rewards/x/mean → rewards/<name>/mean."""
    parts = name.split("/")
    if parts[0] in BY_PHASE and len(parts) == 2:
        return f"{parts[0]}/<phase>"
    if parts[0] == "tools" and len(parts) == 3:
        return "tools/<name>/calls"
    if parts[0] == "endings":
        return "endings/<name>"
    return f"rewards/<name>/{parts[-1]}" if parts[0] == "rewards" and len(parts) >= 3 else name
