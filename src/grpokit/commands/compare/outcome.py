"""Reads runs into what is compared: the score of each, how it trained, and the options in which variants differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.text import did_you_mean
from ...config.options import TrainConfig
from ...runs.report.data import RunData, is_number, read_run
from .plan import FREE, PlannedRun, last_step
from .variants import differing_options, labels_of, name_of

if TYPE_CHECKING:
    from .statistics import Comparison

# Options that say where a run is, what it logs and how it is watched, and nothing about how it learns or is evaluated.
NOT_COMPARED = frozenset({"seed", *(name for name in FREE if not name.startswith("eval_"))})
LAST_PART = 10  # the score of a metric of training is the mean over the last tenth of the steps


@dataclass(frozen=True)
class VariantRuns:
    """A variant and its finished runs.

    Example:
        >>> VariantRuns("loss_type=dapo", "dapo", {}).seeds
        ()
    """

    name: str
    label: str  # the display name
    runs: Mapping[int, RunData]  # by seed

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs, in order."""
        return tuple(sorted(self.runs))

    def values(self, metric: str) -> list[tuple[list[int], list[float]]]:
        """Returns (steps, values) of a metric or of a figure of the evaluations for each seed."""
        return [series(self.runs[seed], metric) for seed in self.seeds]


@dataclass(frozen=True)
class Outcome:
    """A comparison: its runs, their scores, and what the scores tell apart.

    `compare_runs` makes one of directories. `summary.verdict(outcome)` says it in words.
    """

    metric: str
    scored: str  # how a run's score is made of the metric
    variants: tuple[VariantRuns, ...]
    scores: Mapping[str, Mapping[int, float]]  # label → seed → score
    statistics: Comparison
    left_out: tuple[str, ...]  # runs that are not part of it, and why
    settings: Mapping[str, tuple[Any, ...]]  # option → its value in each variant, where they differ

    def variant(self, label: str) -> VariantRuns:
        """Returns the variant of that label."""
        return next(variant for variant in self.variants if variant.label == label)


def compare_runs(
    paths: str | Path | Iterable[str | Path],
    *,
    metric: str = "",
    baseline: str | None = None,
    alpha: float = 0.05,
) -> Outcome:
    """Compares runs that are there already.

    Runs whose options are the same but for the seed are one variant, named by the options in which variants differ.

    Args:
        paths: directories of runs, or folders of them, or one such; unfinished runs are left out.
        metric: what is compared (default: eval/reward where all runs have it, else reward).
        baseline: name of the variant with which the others are compared; None: all pairs.
        alpha: the probability of calling any pair different where all are equal.

    Returns:
        The outcome.

    Raises:
        ValueError: no finished runs, a seed twice in a variant, or no such metric or baseline.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    found, left_out = [], []
    for path in (found for given in paths for found in find_runs(Path(given))):
        if (path / "config.yaml").is_file() and not (path / "final").is_dir():
            left_out.append(f"{path}: not finished (step {last_step(path)})")
        else:
            found.append(read_run(path))
    if not found:
        raise ValueError(f"--runs: none of them is finished ({'; '.join(left_out) or 'no runs were given'})")
    return make_outcome(_group(found), left_out, metric=metric, baseline=baseline, alpha=alpha)


def find_runs(folder: Path) -> list[Path]:
    """Returns a run's directory, or the runs up to two levels below a folder, such as the one of a comparison."""
    if (folder / "config.yaml").is_file():
        return [folder]
    found = [*folder.glob("*/metrics.jsonl"), *folder.glob("*/*/metrics.jsonl")]
    return sorted(path.parent for path in found) or [folder]


def outcome_of_plan(
    runs: Sequence[PlannedRun], failed: Sequence[str], *, metric: str, baseline: str | None, alpha: float
) -> Outcome:
    """Reads the finished runs of a plan.

    Args:
        runs: its runs.
        failed: what is said about runs that failed.
        metric: see `compare_runs`.
        baseline: see `compare_runs`.
        alpha: see `compare_runs`.

    Raises:
        ValueError: no run is finished, or no such metric or baseline.
    """
    finished: dict[str, dict[int, RunData]] = {}
    left_out, said = list(failed), {line.partition(":")[0] for line in failed}
    for run in runs:
        if run.is_finished():
            finished.setdefault(run.variant.name, {})[run.seed] = read_run(run.directory)
        elif run.name not in said:
            left_out.append(f"{run.name}: not finished")
    if not finished:
        raise ValueError(f"none of the {len(runs)} runs is finished: {'; '.join(left_out[:3])}")
    labels = {run.variant.name: run.label for run in runs}
    variants = [VariantRuns(name, labels[name], finished[name]) for name in labels if name in finished]
    return make_outcome(variants, left_out, metric=metric, baseline=baseline, alpha=alpha)


def make_outcome(
    variants: Sequence[VariantRuns],
    left_out: Sequence[str],
    *,
    metric: str,
    baseline: str | None,
    alpha: float,
) -> Outcome:
    """Scores the runs of some variants and tests which differ.

    Args:
        variants: the variants; each has at least one run.
        left_out: runs that are not part of it, and why.
        metric: see `compare_runs`.
        baseline: a variant's name or label; None or "": all pairs.
        alpha: see `compare_runs`.
    """
    from .statistics import compare_pairs

    runs = [run for variant in variants for run in variant.runs.values()]
    metric = choose_metric(runs, metric)
    scores = {v.label: {seed: score(v.runs[seed], metric) for seed in v.seeds} for v in variants}
    chosen = _label_of_baseline(baseline, variants)
    return Outcome(
        metric=metric,
        scored=_how_scored(runs, metric),
        variants=tuple(variants),
        scores=scores,
        statistics=compare_pairs(scores, alpha, chosen),
        left_out=tuple(left_out),
        settings=_settings(variants),
    )


# --------------------------------------------------------------------------- scores


def series(run: RunData, metric: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of a figure of the evaluations, or of a metric of the steps."""
    steps, values = run.evaluation(metric) if metric.startswith("eval/") else run.metric(metric)
    return (steps, values) if steps else run.metric(metric)


def choose_metric(runs: Sequence[RunData], wanted: str) -> str:
    """Returns the metric to compare: the one that is wanted, else eval/reward, else reward.

    Raises:
        ValueError: a run doesn't have it; the message has the ones that all have.
    """
    shared = set.intersection(*(_metrics(run) for run in runs))
    for metric in (wanted,) if wanted else ("eval/reward", "reward"):
        if metric in shared:
            return metric
    name = wanted or "reward"
    without = next(run for run in runs if name not in _metrics(run))
    held_out = sorted(metric for metric in shared if metric.startswith("eval/"))
    known = ", ".join(held_out or sorted(shared)[:12])
    raise ValueError(
        f"--metric {name}: {without.path} doesn't have it{did_you_mean(name, shared)}; all runs have {known}"
    )


def score(run: RunData, metric: str) -> float:
    """Returns a run's score: a figure at its last evaluation, or the mean of a metric over the last tenth of the steps.

    It is never the best of a curve: the best of many noisy values is too high, and the more so the noisier they are.
    """
    _, values = series(run, metric)
    last = values[-1:] if metric.startswith("eval/") else values[-_last_steps(len(values)) :]
    return sum(last) / len(last)


def _last_steps(count: int) -> int:
    return max(1, count // LAST_PART)


def _how_scored(runs: Sequence[RunData], metric: str) -> str:
    if metric.startswith("eval/"):
        ends = sorted({series(run, metric)[0][-1] for run in runs})
        return f"{metric} at the last evaluation, step {_span(ends)}"
    counts = sorted({_last_steps(len(series(run, metric)[1])) for run in runs})
    return f"mean {metric} over the last {_span(counts)} steps"


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _metrics(run: RunData) -> set[str]:
    rows = (*run.steps, *run.evaluations)
    return {name for row in rows for name, value in row.items() if name != "step" and is_number(value)}


# --------------------------------------------------------------------------- variants of runs


def _group(runs: Sequence[RunData]) -> list[VariantRuns]:
    """Groups runs by all options but the seed and those of logging, in the order given."""
    options = [_options(run) for run in runs]
    differing = differing_options(options, NOT_COMPARED)
    groups: dict[str, dict[int, RunData]] = {}
    given: dict[str, dict[str, Any]] = {}
    for run, own in zip(runs, options, strict=True):
        varied = {name: own.get(name) for name in differing}
        name = name_of(varied) or "all runs"
        given[name] = varied
        group, seed = groups.setdefault(name, {}), int(own["seed"])
        if seed in group:
            raise ValueError(
                f"--runs: {group[seed].path} and {run.path} are the same variant with the same seed, {seed}; "
                "leave one of them out"
            )
        group[seed] = run
    labels = labels_of(given)
    return [VariantRuns(name, labels[name], group) for name, group in groups.items()]


def _options(run: RunData) -> dict[str, Any]:
    """Returns all options of a run; those that a run of an earlier version lacks are at their defaults."""
    options = {**{field.name: field.default for field in fields(TrainConfig)}, **run.config}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _settings(variants: Sequence[VariantRuns]) -> dict[str, tuple[Any, ...]]:
    """Returns the options in which variants differ, with the value of each."""
    configs = [_options(next(iter(variant.runs.values()))) for variant in variants]
    return {
        name: tuple(own.get(name) for own in configs) for name in differing_options(configs, NOT_COMPARED)
    }


def _label_of_baseline(baseline: str | None, variants: Sequence[VariantRuns]) -> str | None:
    if not baseline:
        return None
    for variant in variants:
        if baseline in (variant.name, variant.label):
            return variant.label
    known = [variant.label for variant in variants]
    raise ValueError(
        f"--baseline {baseline}: no such variant{did_you_mean(baseline, known)}; there are {', '.join(known)}"
    )


def is_gain(metric: str) -> bool:
    """Tells whether more of a metric is better.

    Example:
        >>> is_gain("eval/math/pass@1"), is_gain("eval/mean_length"), is_gain("time/reward")
        (True, False, False)
    """
    return bool(
        re.search(
            r"^(?!.*_ci95)((eval/.*)?\b(reward$|pass@|maj@|accuracy|exact_match)|(eval/(.+/)?)?rewards?/.+/mean$)",
            metric,
        )
    )
