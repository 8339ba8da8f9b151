"""Runs on data as users have it: mixed, read lazily, in epochs, in an order of the user's own. Resumed, cut and on ranks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest

import grpokit.training.setup.start
from grpokit import GRPOTrainer
from grpokit.commands.cli import main, parse
from grpokit.config.checks import check_train_config
from grpokit.config.options import EvalConfig, TrainConfig
from grpokit.config.yaml import from_yaml, to_yaml, with_options
from grpokit.runs.checkpoint import checkpoints
from grpokit.training.evaluate_model import evaluate_model
from helpers import forked
from helpers.elsewhere import Watch
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.refusals import refuses
from helpers.stops import STOPPED, in_update, same_bytes, stop_when
from helpers.tiny import DIGITS, ROWS, tiny_config, write_rows

MORE = [
    {"question": json.dumps([{"role": "user", "content": "x"}]), "prompt": f"{d}{d}="} for d in DIGITS[:5]
]

ORDER = """
import os


class Order:
    '''Draws by a state that every call and every reward moves, so that nothing can be asked twice or forgotten.'''

    def __init__(self, rows, seed):
        self.rows, self.state, self.log = rows, seed, []
        self.broken = globals().get("__file__", "") + ".broken"

    def move(self, number):
        self.state = (self.state * 1103515245 + int(number) + 12345) % 2**31
        return self.state

    def take(self, step, count):
        self.log.append(["take", step, count])
        return [self.move(step) % self.rows for _ in range(count)]

    def observe(self, step, rows, rewards):
        assert len(rows) == len(rewards)
        self.log.append(["observe", step, len(rows)])
        if step == 1 and os.path.exists(self.broken):
            raise RuntimeError("broken")
        for row, reward in zip(rows, rewards):
            self.move(row + (0 if reward is None else round(reward * 1e6)))

    def __len__(self):
        return 8

    def state_dict(self):
        return {"state": self.state, "log": self.log}

    def load_state_dict(self, saved):
        self.state, self.log = saved["state"], saved["log"]
"""


def weights(run: Path):
    from safetensors.torch import load_file

    return load_file(run / "final" / "model.safetensors")


def assert_close(run: Path, expected: Path) -> None:
    ours, theirs = weights(run), weights(expected)
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) < 1e-10
    for row, other in zip(rows(run, "metrics.jsonl"), rows(expected, "metrics.jsonl"), strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-10)


# --------------------------------------------------------------------------- a mixture, read lazily, for two epochs


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """DIR with a run that nothing happens to: two datasets with weights, read lazily, for an epoch of 15 rows."""
    directory = tmp_path_factory.mktemp("mixed")
    write_rows(directory / "more.jsonl", MORE)
    config = tiny_config(directory)
    datasets = (f"{directory}/train.jsonl:2", f"twice={directory}/more.jsonl:1")
    own = {"dataset": datasets, "lazy_tokenize": "always", "num_train_epochs": 1, "max_steps": 100}
    (directory / "run.yaml").write_text(to_yaml(dataclasses.replace(config, **own, save_steps=2)))
    assert main(["train", "--config", f"{directory}/run.yaml", "--output_dir", f"{directory}/whole"]) == 0
    return directory


def test_a_mixture_is_resumed_to_the_byte_and_has_a_metric_for_each_dataset(mixed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    command = ["train", "--config", f"{mixed}/run.yaml", "--output_dir", str(run)]
    stop_when(monkeypatch, in_update(1, step=2))
    assert main(command) == STOPPED
    monkeypatch.undo()
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2", "checkpoint-2-update-1"]
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(run, mixed / "whole")
    found = rows(run, "metrics.jsonl")
    assert len(found) == 4  # 15 rows in steps of 4
    names = {name for row in found for name in row if name.startswith("reward/")}
    assert names == {"reward/train/mean", "reward/twice/mean", "reward/unscored", "reward/length_correlation"}
    assert main([*command, "--resume_from_checkpoint", "auto", "--dataset", f"{mixed}/train.jsonl"]) == 2


def test_a_mixture_is_the_same_from_python_on_ranks_and_in_other_cuts(mixed, tmp_path):
    config = from_yaml(TrainConfig, (mixed / "run.yaml").read_text(), "run.yaml")
    never = {"lazy_tokenize": "never", "output_dir": str(tmp_path / "python")}
    trainer = GRPOTrainer(args=config, train_dataset=list(config.dataset), **never)
    trainer.train()
    same_bytes(tmp_path / "python", mixed / "whole")
    cut = ["--micro_batch_tokens", "40", "--output_dir", tmp_path / "ranks"]
    done = forked.run("grpokit", "train", "--config", mixed / "run.yaml", *cut, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(tmp_path / "ranks", mixed / "whole")


def test_eval_takes_every_prompt_of_each_dataset(mixed, tmp_path, capsys):
    data = (f"{mixed}/train.jsonl", f"twice={mixed}/more.jsonl")
    reward = (f"{REWARDS}:digits_in_order",)
    config = EvalConfig(model=f"{mixed}/model", dataset=data, reward_funcs=reward, max_completion_length=2)
    evaluate_model(dataclasses.replace(config, num_generations=1))
    assert "on 15 prompts of" in capsys.readouterr().out.replace("\n", " ")
    assert main(["inspect-data", f"{mixed}/more.jsonl", "--prompt_column", "question"]) == 0
    assert "`question` is a chat, written as JSON" in capsys.readouterr().out


# --------------------------------------------------------------------------- an order of one's own


@pytest.fixture(scope="module")
def ordered(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("ordered")
    (directory / "order.py").write_text(ORDER)
    own = {"sampler_order": f"{directory}/order.py:Order", "max_resample_times": 1, "num_iterations": 1}
    config = tiny_config(directory, num_train_epochs=1.25, max_steps=100, save_steps=1, **own)
    (directory / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", f"{directory}/run.yaml", "--output_dir", f"{directory}/whole"]) == 0
    assert len(rows(directory / "whole", "metrics.jsonl")) == 3  # 1.25 × 8 prompts in steps of 4
    return directory


def at_pause(number: int):
    """Stops at the n-th pause of sampling."""
    calls = itertools.count(1)
    return lambda run, progress: progress is None and next(calls) == number


@pytest.mark.parametrize("due", [at_pause(2), in_update(0, step=1)], ids=["sampling", "learning"])
def test_an_order_of_ones_own_is_resumed_to_the_byte(ordered, tmp_path, monkeypatch, due):
    run = tmp_path / "run"
    command = ["train", "--config", f"{ordered}/run.yaml", "--output_dir", str(run)]
    stop_when(monkeypatch, due)
    assert main(command) == STOPPED
    monkeypatch.undo()
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(run, ordered / "whole")


def test_an_error_of_an_order_loses_nothing_and_leaves_no_trace(ordered, tmp_path, capsys):
    """`observe` fails after it has changed the state: the step is sampled again from the state where it began."""
    command = ["train", "--config", f"{ordered}/run.yaml", "--output_dir", str(tmp_path / "run")]
    command += ["--save_steps", "3"]
    broken = ordered / "order.py.broken"
    broken.touch()
    assert main(command) == 2
    broken.unlink()
    said = capsys.readouterr().err
    assert (
        f"--sampler_order {ordered}/order.py:Order: observe() raised RuntimeError: broken ({ordered}/order.py:"
        in said
    )
    assert main([*command, "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(tmp_path / "run", ordered / "whole")
    states = [
        json.loads((path / "trainer" / "state.json").read_text())["data"]["state"]
        for path in (checkpoints(tmp_path / "run")[-1], checkpoints(ordered / "whole")[-1])
    ]
    assert states[0] == states[1]


def test_an_order_of_ones_own_is_the_same_on_ranks_and_from_python(ordered, tmp_path):
    options = ["--config", ordered / "run.yaml", "--output_dir", tmp_path / "ranks"]
    done = forked.run("grpokit", "train", *options, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(tmp_path / "ranks", ordered / "whole")
    namespace: dict = {}
    exec(ORDER, namespace)  # noqa: S102
    order = namespace["Order"](len(ROWS), 42)
    config = from_yaml(TrainConfig, (ordered / "run.yaml").read_text(), "run.yaml")
    GRPOTrainer(args=config, sampler_order=order, output_dir=str(tmp_path / "python")).train()
    same_bytes(tmp_path / "python", ordered / "whole")
    assert [call[:2] for call in order.log if call[0] == "observe"] == [
        ["observe", step] for step in range(3)
    ]


def test_an_order_of_ones_own_goes_with_sampling_ahead(tmp_path, monkeypatch):
    (tmp_path / "order.py").write_text(ORDER)
    ahead = {"sampler": "vllm", "async_depth": 1, "sampler_order": f"{tmp_path}/order.py:Order"}
    config = tiny_config(tmp_path, **ahead, num_iterations=1, save_steps=1)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    monkeypatch.setattr(grpokit.training.setup.start, "sampler_factory", Watch().samplers)
    command = ["train", "--config", f"{tmp_path}/run.yaml", "--output_dir"]
    assert main([*command, f"{tmp_path}/whole"]) == 0
    for number, due in enumerate(
        (in_update(0, step=1), lambda run, progress: run.state.step == 0 and progress)
    ):
        run = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch:
            stop_when(patch, due)
            assert main([*command, str(run)]) == STOPPED
        assert main([*command, str(run), "--resume_from_checkpoint", "auto"]) == 0
        same_bytes(run, tmp_path / "whole")
    run = tmp_path / "between"
    shutil.copytree(tmp_path / "whole", run)
    for folder in ("checkpoint-2", "checkpoint-3", "final"):
        shutil.rmtree(run / folder)
    assert main([*command, str(run), "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(run, tmp_path / "whole")


# --------------------------------------------------------------------------- what is refused


def test_a_length_is_given_once_and_the_nearer_one_wins(tmp_path):
    both = "--num_train_epochs: --max_steps is given too"
    refuses(lambda: parse(["train", "--max_steps", "100", "--num_train_epochs=2"]), both)
    refuses(lambda: with_options(TrainConfig(), {"max_steps": 100, "num_train_epochs": 2}), both)
    (tmp_path / "x.yaml").write_text("num_train_epochs: 2\n")
    config = parse(["train", "--config", f"{tmp_path}/x.yaml", "--max_steps", "7"])
    assert (config.max_steps, config.num_train_epochs) == (7, 0)
    config = with_options(TrainConfig(max_steps=7), {"num_train_epochs": 2})
    assert (config.max_steps, config.num_train_epochs) == (100, 2)
    assert not parse(["train", "--no_shuffle"]).shuffle


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_train_epochs": -1.0}, "--num_train_epochs -1.0: must be above 0"),
        ({"num_train_epochs": 2.0, "max_steps": 5}, "--max_steps 5 is given too"),
        (
            {"num_train_epochs": 2.0, "max_steps": 100, "dataset": (), "environment": ("w.py:W",)},
            "an environment's tasks have no number",
        ),
        ({"sampler_order": "mine"}, "--sampler_order mine: expected file.py:function"),
        (
            {"sampler_order": "o.py:f", "dataset": ("DATA:2", "b=DATA:1")},
            "leave the weights of --dataset out",
        ),
        ({"dataset": ("DATA", "x=nowhere.jsonl")}, "--dataset x=nowhere.jsonl: no such file or directory"),
        ({"dataset": ("DATA:1", "b=DATA")}, "has no weight, and others have one"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, options, said):
    config = tiny_config(tmp_path)
    if "dataset" in options:
        options = options | {
            "dataset": tuple(d.replace("DATA", config.dataset[0]) for d in options["dataset"])
        }
    refuses(lambda: check_train_config(dataclasses.replace(config, **options)), said)


ORDERS = {
    "raises": (
        "class O:\n    def take(self, step, count): return 1 // 0\n",
        "take() raised ZeroDivisionError",
    ),
    "too few": (
        "class O:\n    def take(self, step, count): return [0]\n",
        "take() returned [0]; expected 4 row numbers",
    ),
    "no row": ("class O:\n    def take(self, step, count): return [10] * count\n", "from 0 to 9"),
    "no take": ("class O:\n    pass\n", "returned a O; expected an object with take(step, count)"),
    "half a state": (
        "class O:\n    def take(self, s, c): return [0] * c\n    def state_dict(self): return 1\n",
        "needs both state_dict() and load_state_dict(state)",
    ),
    "no json": (
        "class O:\n    def take(self, s, c): return [0] * c\n    def state_dict(self): return {1, 2}\n"
        "    def load_state_dict(self, s): pass\n",
        "state_dict() can't be written as JSON",
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_that_cannot_work_is_named(name, tmp_path):
    from grpokit.data.ordered import OrderedPrompts
    from grpokit.data.prompts import Prompts
    from grpokit.data.rows import DatasetRow
    from helpers.chats import PLAIN

    code, said = ORDERS[name]
    namespace: dict = {}
    exec(code, namespace)  # noqa: S102
    prompts = Prompts([DatasetRow(f"{n}", {}, f"t:{n}", "prompt") for n in range(10)], PLAIN)

    def use():
        order = OrderedPrompts(prompts, lambda rows, seed: namespace["O"](), 4, name="o.py:O")
        order.data_state(0)
        order.take(0, 4)

    refuses(use, "--sampler_order o.py:O: ", said)
