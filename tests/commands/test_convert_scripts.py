"""Launch scripts and command lines: the flags of the command that trains, and the processes that its launcher starts."""

from __future__ import annotations

import pytest
import yaml

from grpokit.commands.cli import main
from grpokit.commands.convert import convert_file
from grpokit.commands.convert.script import parse_flags, read_launch
from grpokit.commands.convert.shell import read_commands
from grpokit.config.commands import ConvertConfig
from helpers.tiny import tiny_config

SWIFT = """#!/bin/bash
# 8 GPUs
export WANDB_PROJECT=x
MODEL="Qwen/Qwen2.5-7B-Instruct"
EXTRA=(--beta 0.001
    --stop_words '</answer>' "a b")
CUDA_VISIBLE_DEVICES=0,1,2,3 \\
NPROC_PER_NODE=8 swift rlhf \\
    --rlhf_type grpo \\
    --model $MODEL \\
    --tuner_type full \\
    --reward_funcs accuracy format \\
    --dataset "data#1000.jsonl" \\
    --per_device_train_batch_size=4 \\
    --system 'Say "$MODEL".' \\
    --output_dir "${OUT:-runs/x}" \\
    "${EXTRA[@]}" 2>&1 | tee log.txt
"""


def test_a_script_of_ms_swift_is_read(tmp_path):
    (tmp_path / "run.sh").write_text(SWIFT)
    launch = read_launch(str(tmp_path / "run.sh"))
    assert (launch.trainer, launch.processes) == ("swift", 8)
    assert launch.options == {
        "rlhf_type": "grpo",
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "tuner_type": "full",
        "reward_funcs": ["accuracy", "format"],
        "dataset": "data#1000.jsonl",
        "per_device_train_batch_size": 4,
        "system": 'Say "$MODEL".',
        "output_dir": "runs/x",
        "beta": 0.001,
        "stop_words": ["</answer>", "a b"],
    }
    text, said = convert_file(ConvertConfig(str(tmp_path / "run.sh")))
    assert yaml.safe_load(text)["prompts_per_step"] == 4  # 4 × 8 completions / 8
    assert "num_processes: 8, from the launcher" in said
    text, _ = convert_file(ConvertConfig(str(tmp_path / "run.sh"), num_processes=2))
    assert yaml.safe_load(text)["prompts_per_step"] == 1


@pytest.mark.parametrize(
    ("command", "trainer", "processes"),
    [
        ("trl grpo --model_name_or_path m", "trl", None),
        ("trl grpo --model_name_or_path m --num_processes 4", "trl", 4),
        ("accelerate launch --num_processes 8 train.py --model_name_or_path m", None, 8),
        ("accelerate launch --num_processes=8 -m trl.scripts.grpo --model_name_or_path m", "trl", 8),
        ("torchrun --nproc_per_node 4 --nnodes=2 train.py --model_name_or_path m", None, 8),
        ("deepspeed --num_gpus 2 train.py --model_name_or_path m", None, 2),
        ("ACCELERATE_LOG_LEVEL=info nohup python train.py --model_name_or_path m &", None, None),
        ("NNODES=2 NPROC_PER_NODE=4 swift rlhf --rlhf_type grpo --model_name_or_path m", "swift", 8),
        ("python -m swift.cli.rlhf --rlhf_type grpo --model_name_or_path m", "swift", None),
        ("srun bash -c 'accelerate launch --num_processes 16 train.py --model_name_or_path m'", None, 16),
    ],
)
def test_launchers_are_read(command, trainer, processes):
    launch = read_launch(command)
    assert (launch.trainer, launch.processes) == (trainer, processes)
    assert launch.options["model_name_or_path"] == "m"
    assert "num_processes" not in launch.options


def test_a_launchers_own_file_counts_processes(tmp_path):
    (tmp_path / "zero3.yaml").write_text("num_processes: 6\n")
    (tmp_path / "config.yaml").write_text("model_name_or_path: m\nbeta: 0.1\nloss_type: grpo\n")
    (tmp_path / "run.sh").write_text(
        "accelerate launch --config_file zero3.yaml grpo.py --config config.yaml --beta 0.2\n"
    )
    launch = read_launch(str(tmp_path / "run.sh"))
    assert launch.processes == 6
    assert launch.options == {"model_name_or_path": "m", "beta": 0.2, "loss_type": "grpo"}  # flags win
    launch = read_launch("trl grpo --config nowhere.yaml --beta 0.2")
    assert launch.options == {"beta": 0.2}
    assert "config: nowhere.yaml: no such file" in launch.notes[0]


def test_a_yaml_file_may_count_processes(tmp_path):
    (tmp_path / "trl.yaml").write_text("model_name_or_path: m\nnum_processes: 4\n")
    launch = read_launch(str(tmp_path / "trl.yaml"))
    assert (launch.processes, launch.options) == (4, {"model_name_or_path": "m"})


def test_a_comment_within_a_command_ends_it_as_in_a_shell():
    (launch,) = (read_launch("trl grpo \\\n --beta 0.1 \\\n # --seed 1 \\\n --epsilon 0.3\n"),)
    assert launch.options == {"beta": 0.1}
    assert "--epsilon: stands after a comment" in launch.notes[0]


def test_what_only_the_shell_knows_is_named():
    launch = read_launch("trl grpo --seed $SEED --output_dir $(date) --run_name '$x is y'")
    assert [note.split(":")[0] for note in launch.notes] == ["seed", "output_dir"]


def test_the_command_that_trains_is_found_among_others():
    launch = read_launch(
        "pip install trl\nCUDA_VISIBLE_DEVICES=7 trl vllm-serve --model m &\nsleep 60 && trl grpo --beta 0.1; echo done"
    )
    assert launch.options == {"beta": 0.1}
    launch = read_launch(
        "swift rollout --model m &\nswift rlhf --rlhf_type grpo --model m\nswift export --model n"
    )
    assert launch.options == {"rlhf_type": "grpo", "model": "m"}


def test_flags_become_options():
    flags = [
        "--a",
        "1e-6",
        "--b",
        "--c=x=y",
        "--d",
        "-1",
        "0.5",
        "--no_e",
        "--f",
        '{"k": [1]}',
        "--g-h",
        "true",
    ]
    assert parse_flags(["first", *flags]) == (
        {"a": 1e-6, "b": True, "c": "x=y", "d": [-1, 0.5], "e": False, "f": {"k": [1]}, "g_h": True},
        ["first"],
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A='x y'; run $A", ["run", "x", "y"]),
        ("A='x y'; run \"$A\"", ["run", "x y"]),
        ("A=1; A=2; run $A", ["run", "2"]),
        ("run '$A' \"\\$A\" a\\ b", ["run", "$A", "$A", "a b"]),
        ("run ${B:-other} $C", ["run", "other", "$C"]),
        ("run a#b 'c # d' # e", ["run", "a#b", "c # d"]),
        ("run a > out.txt 2>&1", ["run", "a"]),
        ("run a \\\r\n b", ["run", "a", "b"]),
        ("run ''", ["run", ""]),
    ],
)
def test_words_are_those_of_a_shell(text, words):
    assert [list(command.words) for command in read_commands(text)] == [words]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swift rlhf --rlhf_type dpo --model m", "--rlhf_type dpo: is not GRPO"),
        ("python prepare.py --input x", "no command trains by GRPO"),
        ("nowhere.sh", "cannot be read as YAML or as a launch script"),
    ],
)
def test_a_file_without_such_a_run_is_refused(text, message, capsys):
    assert main(["convert-config", text]) == 2
    assert message in capsys.readouterr().err


def test_grpokits_own_file_needs_no_conversion(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("model: m\nprompts_per_step: 4\n")
    assert main(["convert-config", str(tmp_path / "run.yaml")]) == 2
    assert "prompts_per_step is grpokit's own option" in capsys.readouterr().err


def test_a_converted_script_trains(tmp_path):
    config = tiny_config(tmp_path)  # makes the model and the rows
    (tmp_path / "run.sh").write_text(
        f"trl grpo --model_name_or_path {config.model} --bf16 false --reward_funcs x \\\n"
        "  --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_generations 4 --steps_per_generation 4 \\\n"
        f"  --max_completion_length 4 --num_train_epochs 1 --output_dir {tmp_path}/out --save_steps 0.5\n"
    )
    assert main(["convert-config", str(tmp_path / "run.sh"), "--output", str(tmp_path / "run.yaml")]) == 0
    flags = [
        "--dataset",
        *config.dataset,
        "--reward_funcs",
        *config.reward_funcs,
        "--max_steps",
        "1",
        "--num_threads",
        "1",
    ]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *flags]) == 0
    assert (tmp_path / "out" / "final" / "config.json").is_file()


def test_whose_it_is_may_be_said(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("beta: 0.1\n")
    assert main(["convert-config", str(tmp_path / "run.yaml"), "--from", "swift"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["temperature"] == 0.9
