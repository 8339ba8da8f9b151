"""The command: checks everything before the first run, trains, and writes the page of what is there."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from ...common.console import say, waiting
from ...common.text import count
from ...config.commands import CompareConfig
from ...config.options import TrainConfig
from ...runs.report.data import read_run
from .jobs import train_runs
from .outcome import Outcome, choose_metric, compare_runs, outcome_of_plan
from .plan import FILE, Plan, PlannedRun, check_base, load_plan, make_plan
from .variants import make_variants

PAGE = "compare.html"


def compare_written(config: CompareConfig) -> int:
    """Compares runs that are there already: `grpokit compare --runs DIR DIR`.

    Raises:
        ValueError: an option that trains, or runs that cannot be compared.
    """
    for flag in ("config", "vary", "variants", "training"):
        if value := getattr(config, flag):
            given = value if isinstance(value, str) else " ".join(value)
            name = given.split()[0] if flag == "training" else f"--{flag} {given}"
            raise ValueError(
                f"{name}: belongs to a comparison that trains; leave it out, or leave out --runs"
            )
    _check_statistics(config.alpha)
    outcome = compare_runs(
        config.runs, metric=config.metric, baseline=config.baseline or None, alpha=config.alpha
    )
    _show(outcome, Path(config.output or PAGE))
    return 0


def compare_variants(config: CompareConfig, base: TrainConfig) -> int:
    """Trains variants of a run over paired seeds, and compares them.

    Args:
        config: the options of `grpokit compare`.
        base: the training run that the variants change.

    Returns:
        The exit code: 1 where a run failed, 128 + the signal's number where one stopped the comparison.

    Raises:
        ValueError: an option cannot work; nothing has been trained then.
    """
    if config.jobs < 1:
        raise ValueError(f"--jobs {config.jobs}: must be at least 1")
    _check_statistics(config.alpha)
    plan = _plan(config, base)
    _check_baseline(config.baseline, plan)
    runs = plan.runs()
    todo = sum(not run.is_finished() for run in runs)
    if todo:
        _check_losses(plan)
    plan.save()
    shape = f"{count(len(plan.variants), 'variant')} × {count(len(plan.seeds), 'seed')}"
    say(f"{shape} = {count(len(runs), 'run')} in {plan.output}, {todo} to train")
    if todo:
        say(
            f"each run prints to VARIANT/seed-SEED.log there; `grpokit watch {plan.output}` shows all of them"
        )
    ended = train_runs(runs, config.jobs, plan.output, partial(_check_metric, metric=config.metric))
    if ended.signum:
        name = "Ctrl-C" if ended.signum == signal.SIGINT else signal.Signals(ended.signum).name
        say(
            f"stopped by {name}; to continue, repeat the command, or run `grpokit compare --output_dir {plan.output}`"
        )
        return 128 + ended.signum
    if len(ended.failed) == len(runs):
        say("every run failed, so there is nothing to compare")
        return 1
    outcome = outcome_of_plan(
        runs, ended.failed, metric=config.metric, baseline=config.baseline or None, alpha=config.alpha
    )
    _show(outcome, Path(config.output or plan.output / PAGE))
    return 1 if ended.failed else 0


def _plan(config: CompareConfig, base: TrainConfig) -> Plan:
    """Makes the plan of the options; without any, the one that the directory has."""
    output = Path(config.output_dir)
    if not (config.vary or config.variants or config.config or config.training) and (output / FILE).is_file():
        before = load_plan(output)
        return make_plan(before.base, before.variants, config.seeds, output)
    check_base(base)
    return make_plan(base, make_variants(config.vary, config.variants, base), config.seeds, output)


def _check_baseline(baseline: str, plan: Plan) -> None:
    labels = plan.labels
    if baseline and baseline not in (*labels, *labels.values()):
        raise ValueError(f"--baseline {baseline}: no such variant; there are {', '.join(labels.values())}")


def _check_metric(run: PlannedRun, metric: str) -> None:
    """Raises ValueError where a finished run doesn't have the metric, so that no further ones are trained in vain."""
    if not metric:
        return
    try:
        choose_metric([read_run(run.directory)], metric)
    except ValueError as error:
        raise ValueError(
            f"{error}. What is trained is kept: repeat the command with another --metric"
        ) from error


def _check_losses(plan: Plan) -> None:
    """Makes the loss of each variant, so that an option that it doesn't take is found before anything is trained."""
    with waiting("checking the variants' losses"):
        from ...training.setup.loss import loss_from_config
    for variant in plan.variants:
        try:
            loss_from_config(variant.config(plan.base))
        except ValueError as error:
            raise ValueError(f"variant {variant.name}: {error}") from error


def _check_statistics(alpha: float) -> None:
    """Raises ValueError where scipy is missing, or alpha is no probability."""
    try:
        from .statistics import check_alpha
    except ImportError as error:
        raise ValueError(f'grpokit compare: needs scipy ({error}): pip install "grpokit[compare]"') from error
    check_alpha(alpha)


def _show(outcome: Outcome, path: Path) -> None:
    """Prints what the comparison says, and writes its page."""
    from .page import write_page
    from .summary import print_outcome

    print_outcome(outcome)
    say(f"page: {write_page(outcome, path)}")
