"""The command line. Imports torch only once the arguments are understood, so that --help answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from ..common.terminal import toughen_output, write_error
from ..common.text import did_you_mean
from ..config.commands import (
    CompareBatchConfig,
    CompareConfig,
    ConvertConfig,
    InspectConfig,
    LossesConfig,
    PlayConfig,
    ReplayConfig,
    ReportConfig,
    TaskConfig,
    WatchConfig,
)
from ..config.options import EvalConfig, PlanConfig, TrainConfig
from ..config.paths import expand_home
from ..config.yaml import load_yaml
from .arguments import read_arguments
from .messages import fail, quiet
from .train import train

COMMANDS = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "plan": PlanConfig,
    "inspect-data": InspectConfig,
    "play": PlayConfig,
    "report": ReportConfig,
    "watch": WatchConfig,
    "compare": CompareConfig,
    "losses": LossesConfig,
    "compare-batch": CompareBatchConfig,
    "replay": ReplayConfig,
    "convert-config": ConvertConfig,
    "task": TaskConfig,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, or 2 for a mistake that the user can fix, 130 for Ctrl-C."""
    toughen_output()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, *flags = arguments or [""]
        if command in ("train", "eval", "plan") and {"-h", "--help"} & set(flags):
            from ..config.help import help_text

            print(help_text(COMMANDS[command], command), end="")
            return 0
        config = parse(arguments)
        return RUN[type(config)](config)
    except ValueError as error:
        return fail(error, *getattr(error, "__notes__", []))
    except OSError as error:
        fail(error, *getattr(error, "__notes__", []))
        return 1
    except KeyboardInterrupt:
        write_error("stopped by Ctrl-C")
        return 130


def parse(arguments: Sequence[str]) -> Any:
    """Arguments → one of the configurations: flags over the --config file over the defaults.

    Raises:
        ValueError: there is no such command.
    """
    command, *rest = arguments or [""]
    how: dict[str, Any] = {
        "use_underscores": True,
        "config": (
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.HelptextFromCommentsOff,
        ),
    }
    if command in COMMANDS:
        cls = COMMANDS[command]
        read = partial(tyro.cli, cls, **{"prog": f"grpokit {command}", "args": rest, **how})
        config, said = read_arguments(cls, command, rest, read)
        if said:
            print(said)
        return expand_home(config)
    if command and not command.startswith("-"):
        raise ValueError(
            f"unknown command {command!r}{did_you_mean(command, COMMANDS)}; there are {', '.join(COMMANDS)}"
        )
    kinds: Any = [Annotated[cls, tyro.conf.subcommand(name)] for name, cls in COMMANDS.items()]
    chosen: Any = Union[tuple(kinds)]  # noqa: UP007
    about = "GRPO training for language models: every policy loss behind one flag, one gradient however the step is cut."
    return tyro.cli(chosen, prog="grpokit", description=about, args=list(arguments), **how)


def evaluate(config: EvalConfig) -> int:
    """`grpokit eval`."""
    from .evaluate import check, evaluate

    check(config)
    quiet()
    evaluate(config)
    return 0


def inspect_data(config: InspectConfig) -> int:
    """`grpokit inspect-data FILE`: exit code 1 where a row is malformed."""
    from ..common.console import waiting

    with waiting("reading the data"):
        if config.model:
            quiet()
        from .inspect_data import inspect_data as run
    return int(run(config))


def play(config: PlayConfig) -> int:
    """`grpokit play --environment file.py:Class`."""
    from ..common.console import waiting

    with waiting("loading torch"):
        quiet()
        from .play import play as run
    run(config)
    return 0


def plan(config: PlanConfig) -> int:
    """`grpokit plan --model DIR --ranks N`: the model's config.json is enough."""
    from ..common.console import console, waiting

    with waiting("loading torch"):
        quiet()
        from ..training.plan.estimate import check_plan_config
        from ..training.plan.of_run import plan_config
        from .plan import tables
    check_plan_config(config)
    with waiting("running the model's forward on shapes alone"):
        planned = plan_config(config)
    console.print(*tables(planned), sep="\n")
    return 0


def replay(config: ReplayConfig) -> int:
    """`grpokit replay FILE`: exit code 1 where a number went wrong again, 0 where all are finite."""
    from ..common.console import waiting

    with waiting("loading torch and the model"):
        quiet()
        from ..training.setup.loss import loss_from_config
        from .replay import replay as run
    return int(run(config, loss_from_config))


def report(config: ReportConfig) -> int:
    """`grpokit report RUN`."""
    from ..runs.report import write_report

    saved = Path(config.run) / "config.yaml"
    formula = None
    if saved.is_file():
        from ..training.setup.loss import objective_of

        formula = objective_of(load_yaml(TrainConfig, str(saved)))[1]
    print(write_report(config.run, config.output or None, formula=formula))
    return 0


def watch(config: WatchConfig) -> int:
    """`grpokit watch RUN…`, until Ctrl-C."""
    from .watch import watch as serve

    return serve(config)


def task(config: TaskConfig) -> int:
    """`grpokit task NAME`."""
    from ..common.console import waiting
    from .tasks import write_task

    with waiting("loading torch"):
        quiet()
    folder = write_task(config.name, config.output_dir or f"runs/{config.name}", seed=config.seed)
    print(f"--model {folder}/model --dataset {folder}/train.jsonl --eval_dataset {folder}/eval.jsonl")
    return 0


def losses(config: LossesConfig) -> int:
    """`grpokit losses list | show NAME | plot [NAME ...]`."""
    from . import explain

    if config.action == "plot":
        for path in explain.plot_losses(config.names, Path(config.output)):
            print(path)
        return 0
    if config.action == "show" and not config.names:
        raise ValueError(
            "losses show: name a loss, such as `grpokit losses show dapo`; `grpokit losses list` has them all"
        )
    if config.action == "list":
        explain.list_losses()
    for name in config.names:
        explain.show_loss(name)
    return 0


def compare(config: CompareConfig) -> int:
    """`grpokit compare --config FILE --vary OPTION=VALUE,VALUE`: exit code 1 where a run failed."""
    from .compare.command import compare_variants, compare_written

    if config.runs:
        return compare_written(config)
    file = ["--config", config.config] if config.config else []
    return compare_variants(config, parse(["train", *file, *config.training]))


def compare_batch(config: CompareBatchConfig) -> int:
    """`grpokit compare-batch FILE`."""
    from .compare_batch import print_comparison

    print_comparison(config.file, config.losses, config.output, config.max_completion_length)
    return 0


def convert_config(config: ConvertConfig) -> int:
    """`grpokit convert-config FILE`: the YAML to standard output or a file, and what there is to say to standard error."""
    from .convert import convert_file

    text, said = convert_file(config)
    for sentence in said:
        print(f"note: {sentence}", file=sys.stderr)
    if config.output:
        Path(config.output).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


RUN: dict[type, Callable[[Any], int]] = {
    TrainConfig: train,
    EvalConfig: evaluate,
    PlanConfig: plan,
    InspectConfig: inspect_data,
    PlayConfig: play,
    ReportConfig: report,
    WatchConfig: watch,
    LossesConfig: losses,
    CompareConfig: compare,
    CompareBatchConfig: compare_batch,
    ReplayConfig: replay,
    ConvertConfig: convert_config,
    TaskConfig: task,
}


if __name__ == "__main__":
    sys.exit(main())
