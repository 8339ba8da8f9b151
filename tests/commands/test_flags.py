"""Flags that a command doesn't have, values behind flags that take none, and JSON in the place of name=value."""

from __future__ import annotations

import pytest

import grpokit
from grpokit.commands.cli import main, parse
from grpokit.config.foreign import COUNTERPARTS, NOT_NEEDED, RENAMED
from grpokit.config.options import EvalConfig, TrainConfig
from grpokit.config.yaml import with_options
from grpokit.training.arguments import name_arguments

TRAIN, EVAL = ["train"], ["eval"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*TRAIN, "--loss_typ", "x"],
            "--loss_typ: no such option of grpokit train (did you mean '--loss_type'?)",
        ),
        ([*TRAIN, "--model_name_or_path", "m"], "(of TRL or ms-swift: here it is --model)"),
        ([*TRAIN, "--response-prefix=a"], "--response-prefix: no such option"),
        ([*TRAIN, "--response_prefix", "a"], "here it is --generation_prefix"),
        ([*TRAIN, "--use_peft"], "--lora_r above 0"),
        ([*TRAIN, "--per_device_train_batch_size", "4"], "--prompts_per_step says what a step samples"),
        ([*TRAIN, "--gradient_accumulation_steps", "4"], "--updates_per_step"),
        ([*TRAIN, "--deepspeed", "z3"], "not needed here: ranks run under FSDP2"),
        ([*EVAL, "--val_dataset", "a"], "here it is --dataset"),
        ([*EVAL, "--eval_dataset", "a"], "(an option of grpokit train; here it is --dataset)"),
        ([*EVAL, "--eval_temperature", "1"], "(an option of grpokit train; here it is --temperature)"),
        ([*EVAL, "--learning_rate", "1"], "(an option of grpokit train); see grpokit eval --help"),
        ([*TRAIN, "--shuffle", "false"], "--shuffle false: takes no value; write --no_shuffle"),
        ([*TRAIN, "--compile", "True"], "--compile True: takes no value; write --compile"),
        ([*TRAIN, "--no_shuffle=true"], "--no_shuffle true: takes no value; write --no_shuffle"),
        ([*TRAIN, "--compile=maybe"], "--compile maybe: takes no value; write it alone"),
    ],
)
def test_a_flag_that_cannot_work_is_one_line_with_a_hint(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --")
    assert said in error
    assert len(error.splitlines()) == 1


def test_values_that_look_like_flags_and_values_behind_a_switch_are_left_to_the_parser():
    config = parse(["train", "--system_prompt", "--- be brief", "--no_shuffle", "--compile", "--seed", "7"])
    assert (config.system_prompt, config.shuffle, config.compile, config.seed) == (
        "--- be brief",
        False,
        True,
        7,
    )
    assert parse(["train", "--no-shuffle"]) == parse(["train", "--no_shuffle"])


def test_python_and_yaml_give_the_same_hints():
    for name, hint in {
        "model_name_or_path": "here it is --model",
        "use_peft": "--lora_r above 0",
        "deepspeed": "not needed here",
        "max_step": "did you mean 'max_steps'?",
    }.items():
        with pytest.raises(ValueError, match=f"unknown option '{name}'") as raised:
            with_options(TrainConfig(), {name: 1})
        assert hint.replace("?", "") in str(raised.value).replace("?", "")
    with pytest.raises(ValueError, match="an option of grpokit train; here it is --dataset"):
        with_options(EvalConfig(), {"eval_dataset": "a"})


def test_every_hint_names_options_that_exist():
    fields = TrainConfig.__dataclass_fields__
    assert not COUNTERPARTS.keys() & (NOT_NEEDED.keys() | RENAMED.keys() | fields.keys())
    for text in COUNTERPARTS.values():
        words = [word.strip(":;,.") for word in text.split() if word.startswith("--")]
        assert all(word[2:] in fields for word in words), text


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (['{"enable_thinking": false}'], ("enable_thinking=false",)),
        (['{"a": 1, "b": "x"}', "c=2"], ("a=1", "b=x", "c=2")),
        (["{}"], ()),
    ],
)
def test_json_is_read_as_name_value(given, taken):
    for command in (["train"], ["play"], ["inspect-data", "a.jsonl"]):
        assert parse([*command, "--chat_template_kwargs", *given]).chat_template_kwargs == taken
    assert with_options(TrainConfig(), {"chat_template_kwargs": given}).chat_template_kwargs == taken


def test_json_that_is_none_is_refused(capsys):
    assert main(["train", "--lr_scheduler_kwargs", '{"a": 1']) == 2
    assert "begins like JSON and is none" in capsys.readouterr().err


def test_routes_may_be_a_mapping():
    def passes(completions):
        return [0.0 for _ in completions]

    routes = {"data_source": {"gsm8k": "accuracy", "code": [passes, "format"]}}
    wanted = ("data_source", "gsm8k=accuracy", "code=passes,format")
    assert with_options(TrainConfig(), {"reward_routes": routes}).reward_routes == wanted
    with pytest.raises(ValueError, match="reward_routes: expected one column"):
        with_options(TrainConfig(), {"reward_routes": {"gsm8k": "accuracy"}})


def test_args_may_be_a_dict(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    rows = [{"prompt": "1=", "answer": "1"}]
    arguments = {"model": str(tmp_path), "reward_funcs": "exact_match", "train_dataset": rows}
    trainer = grpokit.GRPOTrainer(**arguments, args={"max_steps": 1, "beta": 0.1}, beta=0.2)
    assert (trainer.args.max_steps, trainer.args.beta) == (1, 0.2)
    with pytest.raises(ValueError, match=r"args: unknown option 'max_step' \(did you mean 'max_steps'\?\)"):
        grpokit.GRPOTrainer(**arguments, args={"max_step": 1})


def test_python_says_the_value_of_a_flag_that_is_off():
    said = "--no_shuffle: does nothing with --sampler_order, which chooses"
    assert name_arguments(said) == "shuffle False: does nothing with sampler_order, which chooses"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--optim", "moun"], "--optim moun: did you mean muon? expected adamw, muon, adamw_8bit"),
        (
            ["--optim", "adamw_torch_fused"],
            "--optim adamw_torch_fused: is transformers' name; here it is adamw",
        ),
        (["--optim", "adamw_bnb_8bit"], "here it is adamw_8bit"),
        (["--kl_in_reward"], "--kl_in_reward: is multiplied by --beta"),
        (["--no_shuffle", "--sampler_order", "a.py:f"], "--no_shuffle: does nothing with --sampler_order"),
    ],
)
def test_a_rule_names_the_value_or_the_flag_alone(tmp_path, capsys, flags, said):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.jsonl").write_text("")
    base = ["--model", str(tmp_path), "--dataset", str(tmp_path / "a.jsonl"), "--reward_funcs", "length"]
    assert main(["train", *base, *flags]) == 2
    assert said in capsys.readouterr().err
