"""The Python API: `GRPOTrainer`, and `train` and `evaluate` as one call each."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..batch.advantages import Estimator
from ..config.checks import check_train_config
from ..config.options import TrainConfig
from ..data.ordered import SamplerOrder
from ..parallel import World, joined_world
from ..policy.export import save_model
from ..policy.learn import StepProgress
from ..policy.optimizer import MakeOptimizer
from ..rollouts import Sampler
from ..rollouts.resample import GroupFilter
from .arguments import argument_errors, gather_arguments
from .rescue import keep
from .run import Run, Step
from .session import finish_run, iter_session, open_run
from .setup.loss import checked_loss
from .setup.parts import SamplerFactory
from .signals import Stopped, StopRequest


class GRPOTrainer:
    """Trains a causal language model by GRPO, with any loss of the family.

    Everything is checked when the trainer is made; the model and the data are loaded at the first use. Options have the
    names of the command line's flags (`grpokit train --help` explains them). Under `torchrun` the same script trains on
    all ranks.

    Args:
        model: a directory, org/name[@revision] of the Hub, or a loaded PreTrainedModel, which is trained in place.
        reward_funcs: functions `f(completions, **columns)`, names of built-in rewards, "file.py:function", directories of
            reward models, or a list of these.
        args: a configuration to begin with, or a dict of its options; the other arguments win over it.
        train_dataset: a path, org/name of the Hub, a list of these, a list of dicts, a `datasets.Dataset`, or an iterable
            of rows, which is read as training needs it, in its own order.
        eval_dataset: held-out rows, given in the same ways.
        processing_class: the tokenizer of a loaded model.
        peft_config: peft's LoraConfig, where grpokit can honour it exactly.
        callbacks: objects with any of the methods of `Callback`.
        sampler: "transformers", "vllm", an object with `sample` and `sync`, or a function that makes one.
        advantage_estimator: a name, or a function `f(rewards)` or `f(rewards, rollouts)`.
        group_filter: a function `f(group)` that says whether a scored group is trained on.
        sampler_order: a curriculum: an object with `take(step, count)`, or a function `f(num_rows, seed)` that makes one.
        optimizer: a function `f(named_parameters, learning_rate)` that makes an optimizer, or an optimizer over the
            parameters of a loaded model.
        tools: functions that the model may call, with type hints and a docstring, or "file.py:function".
        environment_factory: a class of environments, or a dict of them, chosen by a row's column `environment`.
        **options: any option of `TrainConfig`.

    Raises:
        ValueError: an argument cannot work; the message names it, its value and what would work.

    Example:
        >>> rows = [{"prompt": "31=", "answer": "13"}, {"prompt": "42=", "answer": "24"}]
        >>> def exact(completions, answer, **columns):
        ...     return [float(c == a) for c, a in zip(completions, answer)]
        >>> trainer = GRPOTrainer("runs/demo-task/model", exact, train_dataset=rows, max_steps=2)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        args: TrainConfig | Mapping[str, Any] | None = None,
        train_dataset: str | Path | Iterable[Any] | None = None,
        eval_dataset: str | Path | Iterable[Any] | None = None,
        *,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] | None = None,
        sampler: str | Sampler | SamplerFactory | None = None,
        advantage_estimator: str | Estimator | None = None,
        group_filter: str | GroupFilter | None = None,
        sampler_order: str | SamplerOrder | Callable[[int, int], SamplerOrder] | None = None,
        optimizer: MakeOptimizer | torch.optim.Optimizer | None = None,
        tools: Sequence[Any] | None = None,
        environment_factory: Any = None,
        **options: Any,
    ) -> None:
        with argument_errors():
            given = {
                "model": model,
                "reward_funcs": reward_funcs,
                "train_dataset": train_dataset,
                "eval_dataset": eval_dataset,
                "processing_class": processing_class,
                "peft_config": peft_config,
                "callbacks": [] if callbacks is None else callbacks,
                "sampler": sampler,
                "advantage_estimator": advantage_estimator,
                "group_filter": group_filter,
                "sampler_order": sampler_order,
                "optimizer": optimizer,
                "tools": [] if tools is None else tools,
                "environment_factory": environment_factory,
            }
            self.args, self._parts = gather_arguments(args or TrainConfig(), given, options)
            check_train_config(self.args, from_python=True)
            checked_loss(self.args)
        self._stop = StopRequest()
        self._open = contextlib.ExitStack()
        self._run: Run | None = None
        self._progress: StepProgress | None = None
        self._closed = self._broken = False
        # Closes files and leaves the process group when the trainer is garbage-collected, or at the end of the script.
        self._finalizer = weakref.finalize(self, self._open.close)

    # ------------------------------------------------------------------- training

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> list[dict[str, float]]:
        """Trains to the end and writes the final model and the report.

        Args:
            resume_from_checkpoint: True or "auto" for the newest checkpoint in output_dir, or a checkpoint's path.

        Returns:
            The history: one row of metrics for each step.

        Raises:
            KeyboardInterrupt, SystemExit: a signal stopped the run; a checkpoint was written.
        """
        self._resume(resume_from_checkpoint)
        for _ in self._steps():
            pass
        return self.history

    def steps(self, resume_from_checkpoint: bool | str | Path | None = None) -> Iterator[Step]:
        """Trains step by step, in a loop of the caller's: each turn yields a `Step` with its groups and metrics.

        After the last step it writes the final model and the report, as `train` does. Leaving the loop early writes a
        checkpoint, and another call of `steps` or `train` goes on from there.

        Args:
            resume_from_checkpoint: see `train`.
        """
        self._resume(resume_from_checkpoint)
        self._started()
        return self._steps()

    def evaluate(self) -> dict[str, float]:
        """Evaluates the present weights on `eval_dataset` and returns the figures, such as `eval/pass@1`."""
        run = self._started()
        if not run.held_out:
            raise ValueError("eval_dataset: there is none to evaluate on; give one to GRPOTrainer")
        with self._guarded():
            return run.evaluate(run.state.step)

    def save_model(self, output_dir: str | Path) -> None:
        """Writes the present weights as a Hugging Face directory. All ranks call it.

        A model that is there is replaced. Raises ValueError where the directory holds anything else.
        """
        run, path = self._started(), Path(output_dir).expanduser()
        with self._guarded():
            _refuse_to_replace(path)
            save_model(path, run.policy, run.tokenizer, run.save_format, run.world)

    # ------------------------------------------------------------------- what it holds

    @property
    def model(self) -> Any:
        """The model that is trained, a transformers PreTrainedModel."""
        return (self._run or self._started()).policy.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return (self._run or self._started()).tokenizer

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of each step that this trainer made, as in metrics.jsonl."""
        return (self._run or self._started()).recorder.history

    @property
    def output_dir(self) -> Path:
        """The run's directory."""
        return Path(self.args.output_dir)

    def close(self) -> None:
        """Closes the run's files and leaves the process group. This happens by itself at the end of the script."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> GRPOTrainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------- inside

    def _resume(self, checkpoint: bool | str | Path | None) -> None:
        if not checkpoint:
            return
        if self._run is not None:
            raise ValueError(
                "resume_from_checkpoint: the run has begun already; make a new GRPOTrainer to resume"
            )
        wanted = "auto" if checkpoint is True else str(Path(checkpoint).expanduser())
        self.args = dataclasses.replace(self.args, resume_from_checkpoint=wanted)

    def _started(self) -> Run:
        """The run, put together at the first use."""
        if self._closed:
            raise ValueError("this GRPOTrainer is closed; make a new one to go on")
        if self._run is None:
            with self._guarded():
                self._world: World = self._open.enter_context(joined_world(self.args.ddp_timeout))
                self._run, self._progress = open_run(self.args, self._world, self._stop, self._parts)
                self._open.callback(self._run.close)
        return self._run

    def _steps(self) -> Iterator[Step]:
        run, progress, self._progress = self._started(), self._progress, None
        if self._broken:
            raise ValueError(
                "this run stopped in the middle of a step; make a new GRPOTrainer and call train(resume_from_checkpoint=True)"
            )
        with self._guarded():
            try:
                yield from iter_session(run, progress)
                finish_run(run)
            except GeneratorExit:  # the caller has left the loop, between two steps
                if run.state.step > 0:
                    keep(run)
                raise
            except BaseException:
                self._broken = True
                raise

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Names arguments in errors, writes error.txt, and raises KeyboardInterrupt or SystemExit after a signal."""
        try:
            with argument_errors(), self._stop.listening(_tell):
                yield
        except Stopped as stopped:
            self._stop.signum = 0  # it has been obeyed
            if stopped.exit_code == 130:
                raise KeyboardInterrupt(f"stopped by {stopped}; a checkpoint was written") from None
            raise SystemExit(stopped.exit_code) from None
        except Exception as error:
            if self._run is not None and self._run.world.is_main:
                error.add_note(self._run.recorder.write_error(error))
            raise


def _tell(text: str) -> None:
    """A line from within a signal handler, where the console may be gone."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        print(text)


def _refuse_to_replace(path: Path) -> None:
    """Raises ValueError where writing a model to `path` would delete anything but a model."""
    if path.is_file():
        raise ValueError(f"output_dir {path}: is a file; name a directory")
    known = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ".svg")
    others = (
        [item.name for item in path.iterdir() if item.is_dir() or item.suffix not in known]
        if path.exists()
        else []
    )
    if others or (path.exists() and any(path.iterdir()) and not _is_model(path)):
        raise ValueError(
            f"output_dir {path}: is not empty and not a model's directory, and would be replaced; name another, such as "
            f"{path / 'model'}"
        )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()


def train(
    model: Any = None,
    reward_funcs: Any = None,
    args: TrainConfig | Mapping[str, Any] | None = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    **arguments: Any,
) -> GRPOTrainer:
    """Makes a `GRPOTrainer`, trains it to the end, and returns it.

    Args:
        model: see `GRPOTrainer`, as for all others.
        reward_funcs: see there.
        args: see there.
        train_dataset: see there.
        eval_dataset: see there.
        **arguments: see there.

    Returns:
        The trainer, whose `history` has the metrics of each step.

    Example:
        >>> trainer = train("runs/demo-task/model", exact, train_dataset=rows, max_steps=60)  # doctest: +SKIP
        >>> trainer.history[-1]["reward"]  # doctest: +SKIP
        0.93
    """
    resume = arguments.pop("resume_from_checkpoint", None)
    trainer = GRPOTrainer(model, reward_funcs, args, train_dataset, eval_dataset, **arguments)
    trainer.train(resume)
    return trainer


def evaluate(
    model: Any, reward_funcs: Any, dataset: Any, *, processing_class: Any = None, **options: Any
) -> dict[str, Any]:
    """Evaluates a model: pass@1 greedy and sampled, pass@k, maj@k and the mean reward, as `grpokit eval` does.

    Args:
        model: a directory, a model of the Hub, or a loaded PreTrainedModel; or a list of directories to compare.
        reward_funcs: as for `GRPOTrainer`; a completion passes where the first gives it at least 1.
        dataset: the prompts: a path, a dataset of the Hub, rows in memory, or a dict of several such sets by name.
        processing_class: the tokenizer of a loaded model.
        **options: options of `grpokit eval`: num_generations, pass_at_k, temperature, ...

    Returns:
        The figures by name: `eval/pass@1_greedy`, `eval/pass@1`, `eval/reward`, ...; for a list, these of each model by its
        directory, with the paired difference to the first.

    Raises:
        ValueError: an argument cannot work.
    """
    from .arguments import gather_evaluation
    from .compare_models import compare_models
    from .evaluate_model import evaluate_model

    with argument_errors({}):
        config, parts = gather_evaluation(model, reward_funcs, dataset, processing_class, options)
        return compare_models(config, parts) if config.models else evaluate_model(config, parts)
