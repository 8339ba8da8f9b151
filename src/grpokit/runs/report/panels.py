"""The table of plots: the metrics that each shows, and what to look for in it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from ...common.figures import set_names
from .colours import AMBER, BLUE, GREEN, GREY, PINK, RED
from .data import RunData

# Parts of time/step, and the colour of each.
PHASES = {
    "rollout": BLUE,
    "learn": AMBER,
    "reward": GREEN,
    "sync": PINK,
    "teacher": RED,
    "other": GREY,
}


@dataclass(frozen=True)
class Line:
    """A metric in a plot.

    Example:
        >>> line = Line("clip_ratio/low_mean", "below the range", BLUE)
    """

    metric: str
    label: str
    colour: str = BLUE
    reduce: Literal["mean", "max", "min"] = "mean"  # how several steps of a long series become one point


@dataclass(frozen=True)
class Panel:
    """A plot, shown where the run has one of its metrics.

    Example:
        >>> panel = Panel("kl", "KL", "A slow rise is normal.", (Line("kl", "KL"),))
    """

    key: str
    title: str
    caption: str  # one sentence: what to look for
    lines: tuple[Line, ...]
    kind: Literal["lines", "reward", "lengths", "times", "evaluation"] = "lines"
    percent: bool = False  # the values are shares
    from_zero: bool = False  # the axis starts at 0
    trend: bool = True  # whether a long series gets a rolling mean
    # The axis is logarithmic where the largest value is more than this many times the smallest.
    log_over: float = math.inf
    size: Literal["normal", "small"] = "normal"


REWARD = Panel(
    "reward",
    "Reward",
    "Should rise and level off; where the band narrows, the completions of a prompt get the same reward and "
    "teach less.",
    (Line("reward", "reward, mean over completions"),),
    kind="reward",
)
PANELS: tuple[Panel, ...] = (
    Panel(
        "evaluation",
        "Held-out accuracy",
        "Sampled accuracy should rise towards pass@k: reinforcement learning mostly makes likely what the model "
        "could already do in some samples.",
        (Line("eval/pass@1", "pass@1, sampled"), Line("eval/pass@1_greedy", "pass@1, greedy", RED)),
        kind="evaluation",
        percent=True,
    ),
    Panel(
        "clip",
        "Tokens clipped",
        "Tokens whose gradient the clip takes away (cispo: whose ratio it caps); a few percent is usual, tens of "
        "percent mean that the policy moves too far on one set of completions, and with one update a step there are none.",
        (
            Line("clip_ratio/low_mean", "below the range", BLUE),
            Line("clip_ratio/high_mean", "above the range", RED),
            Line("clip_ratio/region_mean", "either way", GREY),
            Line("clip_ratio/delta_mean", "above delta", GREEN),
        ),
        percent=True,
        from_zero=True,
    ),
    Panel(
        "gate",
        "Openness of the gate",
        "1 while the policy is the one that sampled; the further below, the more sapo damps tokens whose ratio "
        "has moved away from 1.",
        (Line("gate/mean", "gate"),),
    ),
    Panel(
        "ess",
        "Effective sample size of the ratios",
        "Near 100%, all tokens count alike; well below, a few with large importance ratios dominate the gradient.",
        (Line("ratio/ess", "effective sample size", reduce="min"),),
        percent=True,
        trend=False,  # a dip matters, and a mean would hide it
    ),
    Panel(
        "ratio",
        "Largest importance ratio",
        "Spikes point at single tokens whose probability jumped within a step.",
        (Line("ratio/max", "largest ratio", reduce="max"),),
        trend=False,
        log_over=50,
    ),
    Panel(
        "entropy",
        "Entropy",
        "A slow fall is normal; near 0 the policy no longer explores, and groups get equal rewards.",
        (Line("entropy", "nats per token"),),
        from_zero=True,
    ),
    Panel(
        "length",
        "Completion length",
        "Watch for growth without more reward, and for completions cut off at the limit, which seldom earn any.",
        (Line("completions/mean_length", "mean"), Line("completions/clipped_ratio", "cut off", RED)),
        kind="lengths",
    ),
    Panel(
        "zero-std",
        "Groups that teach nothing",
        "Groups with equal rewards have no gradient: many at the start mean that the task is too hard, many at the "
        "end that it's solved.",
        (
            Line("frac_reward_zero_std", "groups with equal rewards"),
            Line("frac_tokens_dropped", "tokens left out of the forward", AMBER),
        ),
        percent=True,
        from_zero=True,
    ),
    Panel(
        "grad-norm",
        "Gradient norm",
        "Before clipping; lone spikes are harmless where they're clipped, a lasting rise is a warning.",
        (Line("grad_norm", "gradient norm"),),
        log_over=100,
        from_zero=True,
    ),
    Panel(
        "kl",
        "KL to the reference",
        "Grows as the policy learns; a sudden jump says that it left the reference behind.",
        (Line("kl", "KL per token, nats"),),
        from_zero=True,
    ),
    Panel(
        "teacher-kl",
        "KL to the teacher",
        "Should fall towards 0; where it levels off far above, the student seldom samples what the teacher would.",
        (Line("teacher/kl", "KL per token, nats"),),
        from_zero=True,
    ),
    Panel(
        "sampler-kl",
        "Sampler against trainer",
        "Should be close to 0: the sampler's probabilities and the trainer's are of the same policy.",
        (Line("sampler_kl", "KL per token, nats"),),
    ),
    Panel(
        "time",
        "Time of a step",
        "Where the seconds go, and so what is worth making faster.",
        (Line("time/step", "step"),),
        kind="times",
    ),
    Panel(
        "throughput",
        "Tokens per second",
        "Completion tokens sampled and learned from; falls as completions grow longer.",
        (
            Line("tokens_per_second", "whole step"),
            Line("tokens_per_second/rollout", "sampling", GREEN),
            Line("tokens_per_second/learn", "learning", AMBER),
        ),
        from_zero=True,
    ),
    Panel(
        "utilization",
        "Share of the device's arithmetic",
        "Model FLOPs over the device's peak; sampling is bound by memory, so its share is always small.",
        (
            Line("mfu/rollout", "sampling", GREEN),
            Line("mfu/learn", "learning", AMBER),
        ),
        percent=True,
        from_zero=True,
    ),
    Panel(
        "memory",
        "Peak memory of each phase",
        "GiB; a slow rise over many steps is a leak or longer completions, and the phase that needs most must fit on the device.",
        (
            Line("memory/rollout", "sampling", BLUE),
            Line("memory/learn", "learning", AMBER),
            Line("memory/reward", "rewards", GREEN),
            Line("memory/sync", "handing over weights", PINK),
            Line("memory/host", "the host's, resident", GREY),
        ),
        from_zero=True,
        trend=False,
    ),
    Panel(
        "loss",
        "Loss",
        "Not a measure of progress: where the ratio is 1 its value is about 0 by construction, so look at the "
        "reward.",
        (Line("loss", "loss", GREY),),
        size="small",
    ),
    Panel(
        "learning-rate",
        "Learning rate",
        "Should follow the schedule that was asked for.",
        (Line("learning_rate", "learning rate", GREY),),
        from_zero=True,
        trend=False,
        size="small",
    ),
)


def panels_of(run: RunData) -> list[Panel]:
    """Returns the panels for which the run has metrics, without the reward's."""
    by_function = Panel(
        "reward-functions",
        "Reward functions",
        "Each before weighting; one that rises while another falls shows what the policy trades.",
        _lines_of(run, "rewards"),
    )
    by_dataset = Panel(
        "reward-datasets",
        "Reward by dataset",
        "The reward of each dataset's completions; one that falls while another rises may need a larger share.",
        _lines_of(run, "reward"),
    )
    several = [panel for panel in (by_function, by_dataset) if len(panel.lines) > 1]
    return [panel for panel in (*several, *PANELS) if _shows(panel, run)]


def _lines_of(run: RunData, group: str) -> tuple[Line, ...]:
    """Returns a line for each metric `group/NAME/mean`, as far as there are colours."""
    names = sorted(name for name in run.names() if re.fullmatch(rf"{group}/.+/mean", name))
    colours = (BLUE, RED, GREEN, PINK, AMBER, GREY)
    return tuple(
        Line(name, name.split("/", 1)[1].removesuffix("/mean"), colour)
        for name, colour in zip(names, colours, strict=False)
    )


def _shows(panel: Panel, run: RunData) -> bool:
    if panel.kind == "evaluation":  # a single evaluation needs no plot
        return any(len(run.evaluation(line.metric)[0]) > 1 for line in evaluation_lines(panel, run))
    if panel.kind in ("lengths", "times"):
        return run.has(panel.lines[0].metric)
    return any(run.has(line.metric) for line in panel.lines)


def describe(panel: Panel, run: RunData) -> str:
    """Describes the plot in words, for readers who cannot see it."""
    read = run.evaluation if panel.kind == "evaluation" else run.metric
    parts = []
    for line in panel.lines:
        steps, values = read(line.metric)
        if values:
            parts.append(
                f"{line.label}: {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}, "
                f"between {min(values):.4g} and {max(values):.4g}"
            )
    return f"{panel.title} against the step. " + "; ".join(parts) + "."


def evaluation_lines(panel: Panel, run: RunData) -> list[Line]:
    """Returns the lines of the evaluations: greedy, sampled, and pass@k for the largest k > 1; of named sets, pass@1 of each."""
    names = {name for row in run.evaluations for name in row}
    sets = set_names(names)
    if sets:
        colours = zip(sets, (BLUE, RED, GREEN, PINK, AMBER, GREY), strict=False)
        return [Line(f"eval/{name}/pass@1", f"{name}, pass@1", colour) for name, colour in colours]
    ks = sorted(int(n.removeprefix("eval/pass@")) for n in names if re.fullmatch(r"eval/pass@\d+", n))
    many = [k for k in ks[::-1] if k > 1]
    extra = [Line(f"eval/pass@{k}", f"pass@{k}", c) for k, c in zip(many, (GREEN, PINK), strict=False)]
    return [line for line in (*panel.lines, *extra) if line.metric in names]
