"""The Python API: the same run as the command line's, and nothing lost however it is left."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import grpokit
from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.policy.load import load_tokenizer
from grpokit.runs.checkpoint import checkpoints
from grpokit.training.callbacks import CallbackError
from helpers import forked
from helpers.launch import ENVIRONMENT, rows
from helpers.places import REWARDS, ROOT
from helpers.tiny import ROWS, make_model_dir, tiny_config


def digits_in_order(completions, answer):
    """The reward of the command line's runs, as an object."""
    from helpers.reward_functions import digits_in_order

    return digits_in_order(completions)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def settings(tmp_path, model) -> dict:
    """Arguments of a run that works, with rows in memory and the reward as an object."""
    config = tiny_config(tmp_path, model=str(model), shuffle=True)
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    given |= {"reward_funcs": digits_in_order, "train_dataset": ROWS, "output_dir": str(tmp_path / "run")}
    given.pop("dataset")
    return given


def final_weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def without_names(run: Path) -> list[dict]:
    """metrics.jsonl; a reward from Python may have another name."""
    return rows(run, "metrics.jsonl")


@pytest.fixture
def by_command(tmp_path, settings) -> Path:
    """The same run by the command line."""
    config = tiny_config(tmp_path, model=settings["model"], output_dir=str(tmp_path / "command"))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    return tmp_path / "command"


def test_rows_and_functions_from_python_give_the_command_lines_bytes(settings, by_command, tmp_path):
    history = GRPOTrainer(**settings).train()
    assert without_names(tmp_path / "run") == without_names(by_command)
    assert final_weights(tmp_path / "run") == final_weights(by_command)
    assert [row["step"] for row in history] == [1, 2, 3]
    texts = [
        [line["completions"] for line in rows(run, "completions.jsonl")]
        for run in (tmp_path / "run", by_command)
    ]
    assert texts[0] == texts[1]


def test_paths_and_names_from_python_give_the_command_lines_bytes(settings, by_command, tmp_path):
    settings |= {"train_dataset": tmp_path / "train.jsonl", "reward_funcs": f"{REWARDS}:digits_in_order"}
    grpokit.train(**settings)
    assert without_names(tmp_path / "run") == without_names(by_command)
    assert final_weights(tmp_path / "run") == final_weights(by_command)
    names = ("completions.jsonl",)
    assert [rows(tmp_path / "run", n) for n in names] == [rows(by_command, n) for n in names]


def test_the_loop_may_be_left_and_taken_up_again(settings, by_command, tmp_path):
    trainer = GRPOTrainer(**settings)
    for step in trainer.steps():
        assert step.metrics["reward"] == trainer.history[-1]["reward"]
        assert len(step.groups) == 4
        assert step.groups[0].advantages.shape == (4,)
        if step.step == 1:
            break
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert [step.step for step in trainer.steps()] == [2, 3]
    trainer.train()  # nothing is left to do but to write the final model
    assert final_weights(tmp_path / "run") == final_weights(by_command)


def test_an_error_in_the_callers_loop_loses_nothing(settings, tmp_path):
    def trained():
        for step in GRPOTrainer(**settings).steps():
            if step.step == 2:
                raise KeyError("the caller's")

    with pytest.raises(KeyError):
        trained()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_a_run_is_resumed_from_python_to_the_byte(settings, by_command, tmp_path):
    GRPOTrainer(**settings | {"max_steps": 2, "save_steps": 2}).train()
    resumed = GRPOTrainer(**settings, save_steps=2)
    assert [row["step"] for row in resumed.train(resume_from_checkpoint=True)] == [3]
    assert without_names(tmp_path / "run") == without_names(by_command)
    assert final_weights(tmp_path / "run") == final_weights(by_command)
    with pytest.raises(ValueError, match="resume_from_checkpoint: the run has begun already"):
        resumed.train(resume_from_checkpoint=True)


def test_other_rows_are_refused_on_resume(settings):
    GRPOTrainer(**settings | {"max_steps": 1, "save_steps": 1}).train()
    changed = settings | {"train_dataset": ROWS[:-1], "save_steps": 1}
    with pytest.raises(
        ValueError, match=r"^train_dataset: python:list of 10 rows, \w+ → python:list of 9 rows"
    ):
        GRPOTrainer(**changed).train(resume_from_checkpoint=True)


def test_the_command_line_does_not_resume_what_only_a_script_can(settings, tmp_path, capsys):
    GRPOTrainer(
        **settings | {"reward_funcs": lambda completions: [0.5] * len(completions), "max_steps": 1}
    ).train()
    config = ["--config", str(tmp_path / "run" / "config.yaml"), "--resume_from_checkpoint", "auto"]
    assert main(["train", *config]) == 2
    error = capsys.readouterr().err
    assert "--dataset python:list of 10 rows" in error
    assert "resume from Python" in error
    assert main(["train", *config, "--dataset", str(tmp_path / "train.jsonl")]) == 2
    assert "--reward_funcs python:reward" in capsys.readouterr().err


# --------------------------------------------------------------------------- callbacks


class Diary:
    def __init__(self, stops_at: int = 0) -> None:
        self.lines, self.stops_at = [], stops_at

    def on_step_end(self, step, metrics, groups):
        self.lines.append(f"step {step}")
        assert metrics["reward"] >= 0
        assert len(groups) == 4
        return "stop" if step == self.stops_at else None

    def on_evaluate(self, step, metrics):
        self.lines.append(f"evaluate {step}")
        assert "eval/reward" in metrics

    def on_save(self, step, path):
        self.lines.append(f"save {step}")
        assert (path / "trainer" / "state.json").is_file()

    def on_train_end(self, step, path):
        self.lines.append(f"end {step} {path.name}")


def test_callbacks_see_the_run_in_its_order(settings):
    diary = Diary()
    GRPOTrainer(**settings, eval_dataset=ROWS[:2], save_steps=2, callbacks=[diary]).train()
    assert diary.lines == [
        *["evaluate 0", "step 1", "save 2", "step 2", "evaluate 3", "step 3", "end 3 final"],
    ]


def test_a_callback_ends_a_run_cleanly(settings, tmp_path):
    diary = Diary(stops_at=1)
    trainer = GRPOTrainer(**settings, eval_dataset=ROWS[:2], callbacks=[diary])
    trainer.train()
    assert diary.lines == ["evaluate 0", "step 1", "evaluate 1", "end 1 final"]
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


class Breaks:
    def on_step_end(self, step, metrics, groups):
        if step == 2:
            raise KeyError("no such metric")


def test_a_callback_that_raises_is_named_and_everything_is_saved(settings, tmp_path):
    with pytest.raises(
        CallbackError, match=r"Breaks.on_step_end raised KeyError: 'no such metric' \(.*test_trainer"
    ):
        GRPOTrainer(**settings, callbacks=[Breaks()]).train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert "KeyError" in (tmp_path / "run" / "error.txt").read_text()


class FailsToSave:
    def on_save(self, step, path):
        raise OSError("the archive is full")


def test_a_callback_that_fails_after_a_save_leaves_one_true_checkpoint(settings, by_command, tmp_path):
    with pytest.raises(CallbackError, match=r"FailsToSave\.on_save raised OSError"):
        GRPOTrainer(**settings, save_steps=1, callbacks=[FailsToSave()]).train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    GRPOTrainer(**settings, save_steps=1).train(resume_from_checkpoint=True)
    assert without_names(tmp_path / "run") == without_names(by_command)


def test_a_run_that_a_callback_ended_can_be_taken_to_its_end(settings):
    trainer = GRPOTrainer(**settings, callbacks=[Diary(stops_at=1)])
    assert [row["step"] for row in trainer.train()] == [1]
    assert [row["step"] for row in trainer.train()] == [1, 2, 3]


def test_a_loop_to_the_last_step_leaves_what_train_leaves(settings, tmp_path):
    for _ in GRPOTrainer(**settings).steps():
        pass
    GRPOTrainer(**settings | {"output_dir": str(tmp_path / "train")}).train()
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "train")
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("resume", [True, "auto"])
def test_resume_may_be_an_argument_of_the_trainer(settings, resume):
    GRPOTrainer(**settings | {"max_steps": 2, "save_steps": 1}).train()
    trainer = GRPOTrainer(**settings | {"max_steps": 3, "save_steps": 1, "resume_from_checkpoint": resume})
    assert [row["step"] for row in trainer.train()] == [3]


def test_a_closed_trainer_keeps_its_history_and_trains_no_more(settings):
    with GRPOTrainer(**settings | {"max_steps": 1}, callbacks=None) as trainer:
        trainer.train()
    assert len(trainer.history) == 1
    with pytest.raises(ValueError, match="this GRPOTrainer is closed"):
        trainer.train()


def test_saving_a_model_deletes_nothing_else(settings, tmp_path):
    trainer = GRPOTrainer(**settings | {"max_steps": 1})
    trainer.train()
    for path in (trainer.output_dir, tmp_path):
        with pytest.raises(ValueError, match="is not empty and not a model's directory"):
            trainer.save_model(path)
    trainer.save_model(tmp_path / "out")
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


# --------------------------------------------------------------------------- own parts


def sgd(named_parameters, learning_rate):
    return torch.optim.SGD([p for _, p in named_parameters], lr=learning_rate, momentum=0.9)


class Counting(torch.optim.SGD):
    """Keeps a number with its parameter group, as Prodigy and schedule-free optimizers do."""

    def step(self, closure=None):
        self.param_groups[0]["seen"] = self.param_groups[0].get("seen", 0) + 1
        self.param_groups[0]["lr"] /= self.param_groups[0]["seen"]
        return super().step(closure)


def counting(named_parameters, learning_rate):
    return Counting([p for _, p in named_parameters], lr=learning_rate)


def ranks(rewards):
    """An advantage estimator: places within the group, centred."""
    places = rewards.argsort().argsort().double()
    return places - places.mean()


def not_the_second(group):
    return group.prompt.position % 4 != 1


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("optimizer", sgd),
        ("optimizer", counting),
        ("advantage_estimator", ranks),
        ("group_filter", not_the_second),
    ],
    ids=["optimizer", "optimizer-with-numbers", "advantage_estimator", "group_filter"],
)
def test_own_parts_resume_to_the_byte_and_work_by_name(settings, tmp_path, part, value, capsys):
    ends = []
    for name, stops in (("whole", (3,)), ("twice", (2, 3))):
        for max_steps in stops:
            own = {part: value, "output_dir": str(tmp_path / name), "save_steps": 1, "max_steps": max_steps}
            GRPOTrainer(**settings | own).train(resume_from_checkpoint=max_steps > stops[0])
        ends.append((final_weights(tmp_path / name), rows(tmp_path / name, "metrics.jsonl")))
    assert ends[0] == ends[1]
    config = tiny_config(tmp_path, model=settings["model"], output_dir=str(tmp_path / "named"))
    (tmp_path / "named.yaml").write_text(to_yaml(config))
    flag = "optim" if part == "optimizer" else part
    assert (
        main(["train", "--config", str(tmp_path / "named.yaml"), f"--{flag}", f"{__file__}:{value.__name__}"])
        == 0
    )
    assert final_weights(tmp_path / "named") == ends[0][0]
    GRPOTrainer(**settings | {"output_dir": str(tmp_path / "without")}).train()
    assert final_weights(tmp_path / "without") != ends[0][0]


def test_a_refused_group_is_not_trained_on(settings):
    for step in GRPOTrainer(**settings, group_filter=not_the_second).steps():
        trained = [any(bool(r.trainable.any()) for r in group.rollouts) for group in step.groups]
        assert trained == [True, False, True, True]


class Fixed:
    """A sampler that always says the same."""

    def __init__(self, policy, tokenizer, seed) -> None:
        from grpokit.rollouts.transformers import TransformersSampler

        self.inner = TransformersSampler(policy, tokenizer, seed=seed, max_completion_length=6)
        self.asked = []

    def sample(self, prompts, num_generations, *, greedy=False):
        self.asked.append((len(prompts), num_generations, greedy))
        return self.inner.sample(prompts, num_generations, greedy=greedy)

    def sync(self):
        self.asked.append("sync")


def test_an_own_sampler_is_asked_for_each_step(settings, by_command, tmp_path):
    made = []

    def make(policy, tokenizer, seed):
        made.append(Fixed(policy, tokenizer, seed))
        return made[-1]

    GRPOTrainer(**settings, sampler=make).train()
    assert made[0].asked == ["sync", *[(4, 4, False), "sync"] * 3]
    assert final_weights(tmp_path / "run") == final_weights(by_command)


# --------------------------------------------------------------------------- data and models


class Stateful:
    """An iterable with a state, as torchdata's and the Hub's have."""

    def __init__(self) -> None:
        self.at, self.loaded = 0, []

    def __iter__(self):
        while self.at < 40:
            self.at += 1
            yield ROWS[(self.at - 1) % len(ROWS)]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]
        self.loaded.append(state)


@pytest.mark.parametrize(
    "make", [Stateful, lambda: iter(ROWS * 4), lambda: ROWS * 4], ids=["state", "skip", "list"]
)
def test_an_iterable_is_taken_in_its_order_and_resumed(settings, tmp_path, make):
    ends = []
    for name, stops in (("whole", (3,)), ("twice", (2, 3))):
        for max_steps in stops:
            rows_ = make()
            own = {
                "train_dataset": rows_,
                "output_dir": str(tmp_path / name),
                "save_steps": 1,
                "shuffle": False,
            }
            trainer = GRPOTrainer(**settings | own | {"max_steps": max_steps, "max_prompt_length": 12})
            prompts = [
                [group.prompt.content for group in step.groups]
                for step in trainer.steps(resume_from_checkpoint=max_steps > stops[0])
            ]
            assert prompts[-1] == [(ROWS * 4)[i]["prompt"] for i in range(4 * max_steps - 4, 4 * max_steps)]
        ends.append(rows(tmp_path / name, "metrics.jsonl"))
    assert ends[0] == ends[1]
    if isinstance(rows_, Stateful):
        assert rows_.loaded == [{"at": 8}]


def test_an_iterable_that_ends_ends_the_run(settings, tmp_path, capsys):
    own = {"train_dataset": itertools.chain(ROWS), "max_prompt_length": 12, "shuffle": False}
    assert len(GRPOTrainer(**settings | own).train()) == 2  # 10 rows are two steps of 4
    assert "train_dataset ended after 2 steps" in capsys.readouterr().out
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def test_a_dataset_of_the_datasets_library_is_rows(settings, by_command, tmp_path):
    datasets = pytest.importorskip("datasets")
    GRPOTrainer(**settings | {"train_dataset": datasets.Dataset.from_list(ROWS)}).train()
    assert final_weights(tmp_path / "run") == final_weights(by_command)


def test_a_loaded_model_is_trained_in_place_and_its_reference_is_a_copy(settings, tmp_path):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(settings["model"])
    before = loaded.get_input_embeddings().weight.detach().clone()
    own = {"model": loaded, "processing_class": load_tokenizer(settings["model"]), "beta": 0.1}
    trainer = GRPOTrainer(**settings | own)
    trainer.train()
    assert trainer.model is loaded
    assert not torch.equal(loaded.get_input_embeddings().weight, before)
    GRPOTrainer(**settings | {"beta": 0.1, "output_dir": str(tmp_path / "named")}).train()
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "named")


@pytest.mark.parametrize("save_dtype", [None, "bfloat16"])
def test_a_loaded_model_and_an_optimizer_object_resume(settings, tmp_path, save_dtype):
    from transformers import AutoModelForCausalLM

    ends = []
    for name, stops in (("whole", (3,)), ("twice", (2, 3))):
        for max_steps in stops:
            loaded = AutoModelForCausalLM.from_pretrained(settings["model"])
            loaded.double()
            own = {
                "model": loaded,
                "processing_class": load_tokenizer(settings["model"]),
                "optimizer": torch.optim.SGD(loaded.parameters(), lr=0.1, momentum=0.9),
                "output_dir": str(tmp_path / name),
                "lr_scheduler_type": "constant",
                "save_dtype": save_dtype,
                "save_steps": 2,
                "max_steps": max_steps,
            }
            trainer = GRPOTrainer(**settings | own)
            trainer.train(resume_from_checkpoint=max_steps > stops[0])
            assert trainer.model is loaded
        ends.append((final_weights(tmp_path / name), rows(tmp_path / name, "metrics.jsonl")))
    assert ends[0] == ends[1]


def test_pefts_configuration_means_the_same_as_the_flags(settings, tmp_path):
    peft = pytest.importorskip("peft")
    more = {"use_rslora": True, "use_dora": True, "modules_to_save": ["lm_head"]}
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **more
    )
    GRPOTrainer(**settings, peft_config=config).train()
    flags = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}
    flags |= {"use_rslora": True, "use_dora": True, "lora_modules_to_save": ["lm_head"]}
    GRPOTrainer(**settings | flags | {"output_dir": str(tmp_path / "flags")}).train()
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "flags")


def test_evaluate_and_save_model(settings, tmp_path):
    trainer = GRPOTrainer(**settings, eval_dataset=ROWS, eval_generations=2)
    trainer.train()
    figures = trainer.evaluate()
    trainer.save_model(tmp_path / "out")
    options = {"num_generations": 2, "max_completion_length": 6, "dtype": "float64"}
    again = grpokit.evaluate(str(tmp_path / "out"), digits_in_order, ROWS, **options)
    assert again["eval/pass@1_greedy"] == figures["eval/pass@1_greedy"]


def test_async_rewards_work_where_an_event_loop_runs(settings, tmp_path):
    async def slowly(completions, answer):
        await asyncio.sleep(0)
        return digits_in_order(completions, answer)

    async def cell():
        return GRPOTrainer(**settings | {"reward_funcs": slowly}).train()

    assert len(asyncio.run(cell())) == 3
    GRPOTrainer(**settings | {"output_dir": str(tmp_path / "plain")}).train()
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "plain")


# --------------------------------------------------------------------------- mistakes


MISTAKES = [
    ({"model": "nowhere"}, "model nowhere: no such"),
    ({"model": 3}, "model: a int; expected a directory"),
    ({"train_dataset": "nowhere.jsonl"}, "train_dataset nowhere.jsonl: no such"),
    ({"train_dataset": None}, "train_dataset (missing): is required"),
    ({"train_dataset": {"prompt": ["1="]}}, "train_dataset: a dict of 'prompt'; expected rows"),
    ({"train_dataset": 3}, "train_dataset: a int; expected a path"),
    ({"reward_funcs": None}, "reward_funcs (missing): at least one"),
    ({"reward_funcs": 3}, "reward_funcs: a int; expected a function"),
    ({"reward_weights": [1, 2]}, "reward_weights 1.0 2.0: needs one weight"),
    ({"loss_type": "grop"}, "loss_type 'grop'"),
    ({"loss_type": "cispo", "epsilon_high": 0.2}, "epsilon_high 0.2"),
    ({"tau_pos": 2}, "tau_pos 2"),
    ({"num_generations": 1}, "num_generations 1: the estimator"),
    ({"updates_per_step": 3}, "updates_per_step 3: must divide prompts_per_step 4"),
    ({"loss_type": "dr_grpo", "scale_rewards": "group"}, "scale_rewards group: dr_grpo"),
    ({"ref_model": "somewhere"}, "ref_model somewhere: is not used with beta 0"),
    ({"temperature": 0}, "temperature 0.0: must be above 0"),
    ({"min_completion_length": 9}, "min_completion_length 9: must be 0 or more"),
    ({"micro_batch_tokens": 0}, "micro_batch_tokens 0: must be at least 1"),
    ({"beta": -1}, "beta -1.0: must be 0 or more"),
    ({"learning_rate": "fast"}, "learning_rate: expected a number, got 'fast'"),
    ({"max_step": 3}, "unknown option 'max_step' (did you mean 'max_steps'?)"),
    ({"per_device_train_batch_size": 3}, "unknown option 'per_device_train_batch_size' (of TRL or ms-swift"),
    ({"args": [3]}, "args: a list; expected a grpokit.TrainConfig, or a dict of its options"),
    ({"args": {"max_step": 3}}, "args: unknown option 'max_step' (did you mean 'max_steps'?)"),
    ({"callbacks": [object()]}, "callbacks: object: expected any of the methods on_step_end"),
    ({"callbacks": [Diary]}, "callbacks: Diary is a class; make an object of it: Diary()"),
    ({"sampler": object()}, "sampler: a object; expected an object with sample("),
    ({"sampler": "vlm"}, "sampler vlm: is not one of transformers, vllm"),
    ({"advantage_estimator": lambda: 0}, "advantage_estimator: the function takes ()"),
    ({"advantage_estimator": "median"}, "advantage_estimator median: is not one of group"),
    ({"group_filter": 3}, "group_filter: a int; expected a function"),
    ({"optimizer": "sgd"}, "optimizer sgd: expected adamw, muon, adamw_8bit, or file.py:function"),
    ({"reward_funcs": [ranks, ranks]}, "reward_funcs: two functions are called ranks"),
    ({"reward_funcs": ["exact_match"], "reward_weights": [1, 2]}, "reward functions: exact_match"),
    ({"tokenizer": object()}, "tokenizer: this argument is called processing_class"),
    ({"processing_class": object()}, "processing_class: is the tokenizer of a loaded model"),
    ({"shuffle": True, "train_dataset": iter(ROWS)}, "shuffle"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    MISTAKES,
    ids=[f"{next(iter(change))}-{n}" for n, (change, _) in enumerate(MISTAKES)],
)
def test_mistakes_are_found_before_anything_is_loaded_and_name_the_argument(settings, change, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        GRPOTrainer(**settings | change)
    assert message in str(raised.value)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantage_estimator": lambda rewards: rewards[:1]}, "advantage_estimator <lambda>: returned"),
        ({"optimizer": lambda named, rate: torch.optim.SGD([next(iter(named))[1]], lr=rate)}, "optimizer"),
        ({"optimizer": lambda named, rate: None}, "expected a torch.optim.Optimizer"),
        ({"sampler": lambda policy: None}, "sampler: the function returned a NoneType"),
        ({"train_dataset": [{"text": "no prompt"}]}, "train_dataset[0]: no prompt"),
        ({"max_completion_length": 64}, "max_completion_length 64: the model's context is 64"),
    ],
    ids=["estimator", "parameters", "no-optimizer", "sampler", "rows", "context"],
)
def test_mistakes_that_show_later_name_the_argument_too(settings, change, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        GRPOTrainer(**settings | change).train()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "field",
    [{"lora_dropout": 0.1}, {"rank_pattern": {"q_proj": 8}}, {"bias": "all"}, {"target_modules": "q_.*"}],
)
def test_what_pefts_configuration_asks_for_beyond_us_is_refused(settings, field):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"]} | field)
    with pytest.raises(ValueError, match=f"peft_config: {next(iter(field))}"):
        GRPOTrainer(**settings, peft_config=config)


# --------------------------------------------------------------------------- processes


def test_importing_grpokit_imports_nothing_heavy():
    code = "import sys, grpokit; print([m for m in ('torch', 'transformers', 'rich', 'yaml') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


SCRIPT = """
import json, sys
from grpokit import GRPOTrainer

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    GRPOTrainer(reward_funcs=lambda completions, answer: [float(c == a) for c, a in zip(completions, answer)],
                **settings).train()
"""


@pytest.mark.slow
def test_the_same_script_trains_on_two_ranks(settings, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    plain = {name: value for name, value in settings.items() if name != "reward_funcs"}
    for name, ranks in (("one", 1), ("two", 2)):
        given = json.dumps(plain | {"output_dir": str(tmp_path / name), "advantage_estimator": "group"})
        done = forked.run(tmp_path / "script.py", given, ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = (rows(tmp_path / name, "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert ours["reward"] == theirs["reward"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-10)


@pytest.mark.slow
def test_rows_in_memory_and_a_lambda_learn_as_the_demo_does(tmp_path):
    from grpokit.commands.tasks import write_task

    write_task("sort_digits", str(tmp_path / "task"))
    read = [
        [json.loads(line) for line in (tmp_path / "task" / name).read_text().splitlines()]
        for name in ("train.jsonl", "eval.jsonl")
    ]
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    for given_as_objects in ("model", "dataset", "eval_dataset", "output_dir", "reward_funcs", "max_steps"):
        del recipe[given_as_objects]
    trainer = GRPOTrainer(
        tmp_path / "task" / "model",
        lambda completions, answer: [float(c == a) for c, a in zip(completions, answer, strict=True)],
        train_dataset=read[0],
        eval_dataset=read[1],
        **recipe,
        max_steps=60,
        output_dir=str(tmp_path / "run"),
    )
    trainer.train()
    assert trainer.evaluate()["eval/pass@1"] > 0.75
