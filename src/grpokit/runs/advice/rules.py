"""The rules: each looks at a run's history and returns a sentence with the figure, or None."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from .history import WINDOW, History, numbers

# These estimators compare the completions of a group with each other: equal rewards teach them nothing.
WITHIN_GROUPS = ("group", "rloo", "opo", "gdpo", "maxrl", "gpg", "loo_std", "pass_k")
MUCH_CLIPPED = 0.3  # losses of whole sequences clip 15 % to 20 % as a rule


def groups_without_spread(run: History) -> str | None:
    """Finds steps in which nearly all groups have equal rewards."""
    share = run.mean("frac_reward_zero_std")
    if share is None or share < 0.8 or run.config.get("advantage_estimator", "group") not in WITHIN_GROUPS:
        return None
    reward, spread = run.mean("reward"), run.values("reward")
    level = "" if reward is None else f", at a mean reward of {reward:.3g}"
    if share == 1 and spread and max(spread) - min(spread) < 1e-9:
        return (
            f"all rewards of the last {WINDOW} steps are {reward:.3g}, so nothing is learned: read some completions, and check "
            "that the reward function recognises a right answer (a function alone, with the reference as the completion)"
        )
    again = "" if run.config.get("max_resample_times") else ", or set --max_resample_times 3"
    return (
        f"in {share:.0%} of the groups of the last {WINDOW} steps all rewards are equal{level}: these groups teach nothing; "
        f"choose prompts that are solved sometimes, raise --num_generations{again}"
    )


def truncation(run: History) -> str | None:
    """Finds completions that are cut off at the limit."""
    share = run.mean("completions/clipped_ratio")
    if share is None or share < 0.2:
        return None
    limit = run.config.get("max_completion_length")
    masked = run.config.get("mask_truncated_completions") or share > 0.5
    cure = "" if masked else ", or leave such completions out with --mask_truncated_completions"
    return (
        f"{share:.0%} of the completions of the last {WINDOW} steps were cut off"
        f"{'' if limit is None else f' at --max_completion_length {limit}'}; raise it{cure}"
    )


def entropy_collapse(run: History) -> str | None:
    """Finds an entropy that has fallen to nearly nothing while the reward no longer rises."""
    before, now = run.start("entropy"), run.mean("entropy")
    if before is None or now is None or now > 0.1 * before or run.is_rising() or _is_solved(run):
        return None
    return (
        f"the entropy has fallen from {before:.3g} to {now:.3g} nats per token and the reward no longer rises: the policy has "
        "stopped trying other answers; lower --learning_rate, or set --epsilon_high 0.28 or --entropy_coef 0.001"
    )


def _is_solved(run: History) -> bool:
    """Tells whether nearly all rewards are equal: then a low entropy is success, or the rule about groups speaks."""
    share = run.mean("frac_reward_zero_std")
    return share is not None and share >= 0.8


def length_drift(run: History) -> str | None:
    """Finds completions that became twice as long or half as long while the reward has not risen."""
    before, now = run.start("completions/mean_length"), run.mean("completions/mean_length")
    if not before or now is None or 0.5 * before < now < 2 * before or run.has_risen():
        return None
    how, then = ("grown", "soft_overlong") if now > before else ("shrunk", "")
    cure = f"; the reward function {then} penalises length" if then else "; read some of them"
    return (
        f"completions have {how} from {before:.3g} to {now:.3g} tokens while the reward has not risen{cure}"
    )


def clip_share(run: History) -> str | None:
    """Finds steps in which the loss takes the gradient of many tokens away."""
    share, gate = run.mean("clip_ratio/region_mean"), run.mean("gate/mean")
    cure = "lower --learning_rate, --num_iterations or --updates_per_step"
    if share is not None and share >= MUCH_CLIPPED:
        return f"{share:.0%} of the tokens of the last {WINDOW} steps were clipped, so they taught little; {cure}"
    if gate is not None and gate <= 0.5:
        return f"the gate was {gate:.0%} open on average in the last {WINDOW} steps, so the loss damped most gradients; {cure}"
    return None


def sampler_mismatch(run: History) -> str | None:
    """Finds a sampler whose probabilities are not the trainer's."""
    kl = run.mean("sampler_kl")
    if kl is None or kl < 0.01:
        return None
    old = run.config.get("async_depth")
    why = "rollouts are a step old (--async_depth 1)" if old else "its arithmetic or its weights differ"
    chosen = run.config.get("correction") or run.config.get("correction_mode")
    corrected = chosen not in (None, "none") or (
        old and chosen is None
    )  # --async_depth 1 truncates by default
    cure = "lower --learning_rate" if corrected else "set --correction_mode truncate"
    return (
        f"the sampler's KL to the trainer is {kl:.3g} nats per token over {WINDOW} steps: {why}; {cure}, and compare "
        "--dtype on both sides"
    )


def kl_growth(run: History) -> str | None:
    """Finds a policy that has left its reference."""
    before, now = run.start("kl"), run.mean("kl")
    if before is None or now is None or now < 0.5 or now < 3 * before:
        return None
    return (
        f"the KL to the reference has grown from {before:.3g} to {now:.3g} nats per token: the policy is becoming another "
        "model; lower --learning_rate or raise --beta"
    )


def length_hacking(run: History) -> str | None:
    """Finds a reward that is earned by length: it goes with length within groups, and lengths follow it."""
    correlation = run.mean("reward/length_correlation")
    before, now = run.start("completions/mean_length"), run.mean("completions/mean_length")
    if correlation is None or not before or not now or abs(correlation) < 0.5:
        return None
    longer = correlation > 0
    if (now / before if longer else before / now) < 1.3:
        return None
    return (
        f"within groups, {'longer' if longer else 'shorter'} completions get the higher reward (correlation "
        f"{correlation:.2f}), and the mean length went from {before:.3g} to {now:.3g} tokens: check whether the reward is "
        "earned by length"
    )


def learning_rate_high(run: History) -> str | None:
    """Finds a reward that has fallen while gradients grew, and updates that were not finite."""
    skipped = sum(run.values("skipped_updates"))
    rate = run.config.get("learning_rate")
    if skipped:
        return (
            f"{skipped:.0f} updates of the last {WINDOW} steps were skipped, because they were not finite; lower "
            f"--learning_rate{_now(rate)}"
        )
    fall, old, new = _fall(run), run.start("grad_norm"), run.mean("grad_norm")
    if fall is None or not old or new is None or new < 2 * old:
        return None
    return (
        f"the reward has fallen from {fall[0]:.3g} to {fall[1]:.3g}, and the gradient norm has grown from {old:.3g} to "
        f"{new:.3g}; lower --learning_rate{_now(rate)}"
    )


def reward_falls(run: History) -> str | None:
    """Finds a reward that has fallen far below what it was."""
    fall = _fall(run)
    if fall is None or learning_rate_high(run) is not None:
        return None
    before, now = run.start("entropy"), run.mean("entropy")
    wild = before and now is not None and now >= 3 * before
    entropy = f", and the entropy has grown from {before:.3g} to {now:.3g} nats" if wild else ""
    return (
        f"the reward has fallen from {fall[0]:.3g} to {fall[1]:.3g}{entropy}: the policy is getting worse; lower "
        f"--learning_rate{_now(run.config.get('learning_rate'))}, or hold the policy with --beta"
    )


def _fall(run: History) -> tuple[float, float] | None:
    """Returns the best and the present mean reward, where the present one is far below."""
    now = run.mean("reward")
    if run.best is None or now is None or run.best - now <= max(5 * run.noise("reward"), 0.2 * abs(run.best)):
        return None
    return run.best, now


def learning_rate_low(run: History) -> str | None:
    """Finds a run in which nothing moves, though groups have spread."""
    warmup = run.config.get("warmup_steps") or 0
    if run.count < 20 * WINDOW + warmup or (run.mean("frac_reward_zero_std") or 0) >= 0.8:
        return None
    before, now = run.start("reward"), run.mean("reward")
    if before is None or now is None or not run.mean("grad_norm") or not math.isfinite(run.noise("reward")):
        return None
    others = [(run.start(name), run.mean(name)) for name in ("entropy", "completions/mean_length")]
    known = [(a, b) for a, b in others if a and b is not None]
    moved = abs(now - before) > 2 * run.noise("reward") or run.is_rising()
    if moved or any(abs(b - a) > 0.02 * abs(a) for a, b in known):
        return None
    return (
        f"in {run.count} steps the reward has stayed at {now:.3g}, and entropy and length have not moved either: "
        f"--learning_rate{_now(run.config.get('learning_rate'))} may be too low"
    )


def held_out_falls(run: History) -> str | None:
    """Finds a held-out reward that falls while the training reward has risen.

    Compares means of three evaluations, because the best of many noisy ones is too high.
    """
    found = numbers(run.evaluations, "eval/reward")
    before, now = run.start("reward"), run.mean("reward")
    if len(found) < 6 or before is None or now is None or now <= before:
        return None
    smooth = [statistics.fmean(found[i : i + 3]) for i in range(len(found) - 2)]
    noise = math.sqrt(statistics.fmean((b - a) ** 2 for a, b in itertools.pairwise(found)) / 2)
    best, last = max(smooth[:-3]), smooth[-1]
    if best - last <= max(0.05 * abs(best), 0.01, 4 * noise * math.sqrt(2 / 3)):
        return None
    return (
        f"the held-out reward has fallen from {best:.3g} to {last:.3g} (means of three evaluations) while the training reward "
        f"rose from {before:.3g} to {now:.3g}: best/ has an earlier model; --early_stop eval/reward:3 ends a run after three "
        "evaluations without a new best"
    )


def unscored(run: History) -> str | None:
    """Finds completions to which no reward function applies."""
    share = run.mean("reward/unscored")
    if share is None or share < 0.5:
        return None
    return f"no reward function applied to {share:.0%} of the completions of the last {WINDOW} steps: they teach nothing"


def slow_step(run: History) -> str | None:
    """Finds a step that took much longer than the others, and names the phase that took the time."""
    times = run.values("time/step", 3 * WINDOW)
    if len(times) < 3 * WINDOW:
        return None
    usual, row = statistics.median(times[:-1]), run.last[-1]
    if times[-1] < 5 * usual or times[-1] - usual < 10:
        return None
    phases = [
        name for name in row if name.startswith("time/") and name not in ("time/step", "time/imbalance")
    ]
    slowest = max(phases, key=lambda name: row[name], default="")
    where = f", {row[slowest]:.0f} s of them in {slowest.removeprefix('time/')}" if slowest else ""
    return f"the step took {times[-1]:.0f} s{where}; a step usually takes {usual:.1f} s"


def _now(value: Any) -> str:
    """Returns " (now 1e-06)", or "" for an option that is not known."""
    return f" (now {value:g})" if isinstance(value, int | float) else ""


class Rule(NamedTuple):
    """A rule, how serious it is, and the section of the guide about it."""

    find: Callable[[History], str | None]
    severity: Literal["warn", "note"]
    section: str


RULES: Mapping[str, Rule] = {
    "groups_without_spread": Rule(groups_without_spread, "warn", "groups-without-spread"),
    "truncation": Rule(truncation, "warn", "answers-are-cut-off"),
    "entropy_collapse": Rule(entropy_collapse, "warn", "entropy-collapses"),
    "length_drift": Rule(length_drift, "note", "the-reward-is-hacked"),
    "clip_share": Rule(clip_share, "warn", "too-far-from-the-old-policy"),
    "sampler_mismatch": Rule(sampler_mismatch, "warn", "the-sampler-isnt-the-trainer"),
    "kl_growth": Rule(kl_growth, "warn", "kl"),
    "length_hacking": Rule(length_hacking, "note", "the-reward-is-hacked"),
    "learning_rate_high": Rule(learning_rate_high, "warn", "the-learning-rate"),
    "reward_falls": Rule(reward_falls, "warn", "the-learning-rate"),
    "learning_rate_low": Rule(learning_rate_low, "note", "the-learning-rate"),
    "held_out_falls": Rule(held_out_falls, "warn", "the-reward-is-hacked"),
    "unscored": Rule(unscored, "warn", "all-rewards-are-equal"),
    "slow_step": Rule(slow_step, "note", "a-step-takes-long"),
}
