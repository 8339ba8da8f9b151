"""The command line: one clear line and exit code 2 for each mistake, a fast --help, flags over YAML over defaults."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpokit.commands.cli import main, parse
from grpokit.config.checks import check_train_config
from grpokit.config.options import EvalConfig, TrainConfig
from grpokit.config.yaml import load_yaml, to_yaml
from helpers.places import REWARDS, ROOT
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def base(tmp_path, model):
    """Flags of a run that works, as a dict."""
    config = tiny_config(tmp_path, model=str(model), max_steps=2, dtype="float32")
    write_rows(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "base.yaml").write_text(to_yaml(config))
    return config


def train(base, tmp_path, *flags):
    return main(["train", "--config", str(tmp_path / "base.yaml"), *map(str, flags)])


# flags → what the one line on screen must say
MISTAKES = [
    (["--model", "nowhere"], ["--model nowhere", "no such"]),
    (["--dataset", "nowhere.jsonl"], ["--dataset nowhere.jsonl", "no such"]),
    (["--loss_type", "grop"], ["loss_type 'grop'", "did you mean 'grpo'"]),
    (["--loss_type", "cispo", "--epsilon_high", "0.2"], ["epsilon_high 0.2", "absolute cap"]),
    (["--loss_type", "sapo", "--epsilon", "0.2"], ["epsilon 0.2", "not used by loss_type sapo"]),
    (["--tau_pos", "2"], ["tau_pos 2", "not used by loss_type dapo"]),
    (["--delta", "1.1"], ["delta 1.1", "1 + epsilon_high"]),
    (["--num_generations", "1"], ["--num_generations 1", "2 or more"]),
    (["--updates_per_step", "3"], ["--updates_per_step 3", "--prompts_per_step 4"]),
    (["--loss_type", "dr_grpo", "--scale_rewards", "group"], ["--scale_rewards group", "dr_grpo"]),
    (["--advantage_estimator", "rloo", "--scale_rewards", "batch"], ["--scale_rewards batch", "rloo"]),
    (["--ref_model", "somewhere"], ["--ref_model somewhere", "--beta"]),
    (["--temperature", "0"], ["--temperature 0", "above 0"]),
    (["--min_completion_length", "9"], ["--min_completion_length 9", "--max_completion_length 6"]),
    (["--max_completion_length", "64"], ["--max_completion_length 64", "context is 64"]),
    (["--reward_funcs", "exact_macth"], ["exact_macth", "exact_match"]),
    (["--reward_funcs", "nowhere.py:f"], ["nowhere.py"]),
    (["--reward_weights", "1", "2"], ["--reward_weights 1.0 2.0"]),
    (["--max_prompt_length", "2"], ["train.jsonl:1", "--max_prompt_length 2", "truncate_left", "drop"]),
    (["--resume_from_checkpoint", "nowhere"], ["--resume_from_checkpoint nowhere", "auto"]),
    (["--micro_batch_tokens", "0"], ["--micro_batch_tokens 0", "at least 1"]),
    (["--beta", "-1"], ["--beta -1.0", "0 or more"]),
]


@pytest.mark.parametrize(("flags", "words"), MISTAKES, ids=lambda x: " ".join(map(str, x))[:40])
def test_mistakes_are_one_line_and_exit_code_2(base, tmp_path, capsys, flags, words):
    assert train(base, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    first = error.splitlines()[0]
    assert first.startswith("error: ")
    for word in words:
        assert word in first, first
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": ', ["train.jsonl:2"]),
        ({"text": "no prompt here"}, ["train.jsonl:2", "prompt", "messages", "question"]),
        ({"prompt": ""}, ["train.jsonl:2"]),
        ({"messages": [{"role": "user", "content": "hi"}]}, ["train.jsonl:2", "chat template"]),
    ],
)
def test_bad_rows_name_file_and_line(base, tmp_path, capsys, row, words):
    write_rows(tmp_path / "train.jsonl", [ROWS[0], row, *ROWS[1:]])
    assert train(base, tmp_path) == 2
    first = capsys.readouterr().err.splitlines()[0]
    for word in words:
        assert word in first, first


def test_bad_rows_can_be_skipped_and_are_counted(base, tmp_path, capsys):
    write_rows(tmp_path / "train.jsonl", [ROWS[0], "nonsense", *ROWS[1:], {"x": 1}])
    assert train(base, tmp_path, "--skip_bad_rows") == 0
    assert "skipped 2 bad rows" in capsys.readouterr().out


def test_an_empty_dataset_is_refused(base, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text("")
    assert train(base, tmp_path) == 2
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize(("policy", "code"), [("error", 2), ("truncate_left", 0), ("drop", 0)])
def test_long_prompts_are_refused_cut_or_dropped(base, tmp_path, capsys, policy, code):
    assert train(base, tmp_path, "--max_prompt_length", 4, "--long_prompts", policy, "--max_steps", 1) == code
    said = capsys.readouterr()
    assert {
        "error": "--long_prompts" in said.err,
        "truncate_left": "cut 3 prompts" in said.out,
        "drop": "dropped 3" in said.out,
    }[policy]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", ["raises", "reward_functions.py:", "KeyError", "no such thing"]),
        ("too_few", ["too_few", "16", "1"]),
        ("not_a_number", ["not_a_number", "nan", "train.jsonl:"]),
        ("strings", ["strings", "'1'"]),
    ],
)
def test_rewards_that_fail_are_named_with_their_traceback_in_a_file(base, tmp_path, capsys, name, words):
    assert train(base, tmp_path, "--reward_funcs", f"{REWARDS}:{name}") == 2
    error = capsys.readouterr().err
    first = error.splitlines()[0]
    for word in words:
        assert word in first, first
    assert "Traceback" not in error
    assert "error.txt" in error
    full = (Path(base.output_dir) / "error.txt").read_text()
    assert "Traceback" in full
    if name == "raises":
        assert "KeyError: 'no such thing'" in full
    # the mistake is mended: the same directory takes the run
    assert train(base, tmp_path, "--max_steps", 1) == 0


def test_a_reward_that_fails_later_loses_nothing(base, tmp_path, capsys):
    """Two steps are done when the third call raises: their checkpoint is written, and the run goes on from it."""
    flags = ("--reward_funcs", f"{REWARDS}:raises_later", "--max_steps", 4)
    assert train(base, tmp_path, *flags) == 2
    said = capsys.readouterr()
    assert "RuntimeError" in said.err
    assert "checkpoint-2" in said.out
    flags = ("--max_steps", 4, "--resume_from_checkpoint", "auto")
    assert train(base, tmp_path, *flags) == 0
    rows = [json.loads(x) for x in (Path(base.output_dir) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.full_report
def test_rewards_that_never_apply_train_nothing_and_break_nothing(base, tmp_path, capsys):
    assert train(base, tmp_path, "--reward_funcs", f"{REWARDS}:never_applies") == 0
    row = json.loads((Path(base.output_dir) / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == 0
    assert "no reward function applied" in capsys.readouterr().out
    assert "reward" not in row


def test_a_directory_with_another_run_in_it_is_refused(base, tmp_path, capsys):
    assert train(base, tmp_path, "--max_steps", 1, "--save_steps", 1) == 0
    before = (Path(base.output_dir) / "metrics.jsonl").read_bytes()
    assert train(base, tmp_path) == 2
    said = capsys.readouterr().err
    assert "is not empty, and holds a finished run; name another, or continue" in said
    assert "--resume_from_checkpoint auto" in said
    assert (Path(base.output_dir) / "metrics.jsonl").read_bytes() == before


def test_auto_never_writes_over_a_finished_run(base, tmp_path, capsys):
    """A run without checkpoints has nothing to resume: its model stays, and the error doesn't point to auto."""
    assert train(base, tmp_path, "--max_steps", 1) == 0
    final = Path(base.output_dir) / "final" / "model.safetensors"
    before = final.read_bytes()
    assert train(base, tmp_path, "--max_steps", 2, "--resume_from_checkpoint", "auto") == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert train(base, tmp_path, "--max_steps", 2) == 2
    assert "--resume_from_checkpoint" not in capsys.readouterr().err
    assert final.read_bytes() == before


def test_a_directory_that_is_not_the_runs_is_left_alone(base, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "error.txt").write_text("precious")
    (mine / "notes.txt").write_text("notes")
    for auto in ((), ("--resume_from_checkpoint", "auto")):
        assert train(base, tmp_path, "--output_dir", mine, *auto) == 2
    assert (mine / "error.txt").read_text() == "precious"
    assert sorted(p.name for p in mine.iterdir()) == ["error.txt", "notes.txt"]


@pytest.mark.parametrize("where", ["train.jsonl/x", "train.jsonl"])
def test_a_directory_that_cannot_be_made(base, tmp_path, capsys, where):
    assert train(base, tmp_path, "--output_dir", tmp_path / where) == 2
    assert capsys.readouterr().err.startswith("error: --output_dir")


def test_resuming_says_where_from_and_what_changed(base, tmp_path, capsys):
    assert train(base, tmp_path, "--save_steps", 1, "--max_steps", 1) == 0
    capsys.readouterr()
    flags = ("--save_steps", 1, "--resume_from_checkpoint", "auto", "--learning_rate", "0.5")
    assert train(base, tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert "resuming from" in said
    assert "checkpoint-1" in said
    assert "changed since: learning_rate: 0.001 → 0.5" in said


def test_a_reference_of_another_vocabulary_is_refused(base, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, Qwen3Config

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    small = Qwen3Config(vocab_size=8, num_key_value_heads=1, head_dim=16, max_position_embeddings=64, **sizes)
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "ref")
    assert train(base, tmp_path, "--beta", 0.1, "--ref_model", tmp_path / "ref") == 2
    assert "vocabulary of 8" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_leaves(base, tmp_path, capsys):
    """The limit isn't the user's flag, so raising it would not help: the message says what would."""
    for flags in ((), ("--max_prompt_length", 500)):
        assert train(base, tmp_path, "--max_completion_length", 61, *flags) == 2
        error = capsys.readouterr().err
        assert "lower --max_completion_length" in error
        assert "context of 64" in error


def test_a_reward_that_exits_is_an_error_like_any_other(base, tmp_path, capsys):
    (tmp_path / "r.py").write_text("def leaves(completions):\n    raise SystemExit(3)\n")
    assert train(base, tmp_path, "--reward_funcs", f"{tmp_path}/r.py:leaves") == 2
    assert "SystemExit" in capsys.readouterr().err


def test_help_is_fast_because_torch_is_not_imported():
    code = (
        "import sys; from grpokit.commands.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'matplotlib', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--loss_type", "--epsilon_high", "--micro_batch_tokens", "--resume_from_checkpoint"):
        assert flag in done.stdout


def test_both_spellings_are_read_and_flags_come_before_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("loss-type: sapo\nlearning_rate: 1e-5\nreward_funcs: exact_match\n")
    config = parse(
        ["train", "--config", str(tmp_path / "c.yaml"), "--loss_type", "cispo", "--max-steps", "7"]
    )
    assert isinstance(config, TrainConfig)
    assert (config.loss_type, config.learning_rate, config.max_steps) == ("cispo", 1e-5, 7)
    assert config.reward_funcs == ("exact_match",)
    assert isinstance(parse(["eval", "--model", "m"]), EvalConfig)


def test_a_configuration_survives_the_way_through_yaml(tmp_path, base):
    (tmp_path / "c.yaml").write_text(to_yaml(base))
    assert load_yaml(TrainConfig, str(tmp_path / "c.yaml")) == base


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("los_type: grpo", ["unknown option 'los_type'", "did you mean 'loss_type'"]),
        ("max_steps: many", ["max_steps", "a whole number", "'many'"]),
        ("max_steps: 1.5", ["max_steps", "whole number"]),
        ("skip_bad_rows: 1", ["skip_bad_rows", "true or false"]),
        ("dtype: float8", ["dtype", "float8", "bfloat16"]),
        ("- a list", ["name: value"]),
        ("a: b: c", ["not YAML"]),
    ],
)
def test_mistakes_in_yaml_name_the_option(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match="--config") as error:
        load_yaml(TrainConfig, str(tmp_path / "c.yaml"))
    for word in words:
        assert word in str(error.value)


def test_a_missing_required_flag_is_named(capsys):
    assert main(["train"]) == 2
    assert "--model (missing)" in capsys.readouterr().err


def test_several_processes_need_torchrun(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train(base, tmp_path) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_every_recipe_is_a_valid_configuration(tmp_path, model):
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        config = load_yaml(TrainConfig, str(recipe))
        here = dataclasses.replace(
            config, model=str(model), dataset=str(model / "config.json"), eval_dataset=""
        )
        check_train_config(here)
        from grpokit.training.setup.loss import loss_from_config

        loss_from_config(here)


def test_eval_writes_its_figures(tmp_path, model, capsys):
    write_rows(tmp_path / "eval.jsonl", ROWS)
    out = tmp_path / "figures.json"
    flags = f"--model {model} --dataset {tmp_path / 'eval.jsonl'} --reward_funcs exact_match --max_completion_length 6"
    assert main(["eval", *flags.split(), "--num_generations", "4", "--output_file", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert {
        "eval/pass@1_greedy",
        "eval/pass@1",
        "eval/pass@4",
        "eval/reward",
        "eval/pass@1_ci95",
    } <= figures.keys()
    assert figures["eval/pass@4"] >= figures["eval/pass@1"]
    assert "greedy accuracy" in capsys.readouterr().out
    assert main(["eval", *flags.split(), "--num_generations", "4", "--pass_at_k", "8"]) == 2
    assert "--pass_at_k 8" in capsys.readouterr().err


def test_pass_at_k_by_hand():
    """Chen et al.'s estimator: 4 samples, 1 right, k = 2: 1 − C(3,2)/C(4,2) = 1 − 3/6."""
    from grpokit.training.evaluation import estimate_pass_at_k

    assert estimate_pass_at_k(4, 1, 2) == 0.5
    assert estimate_pass_at_k(4, 0, 4) == 0
    assert estimate_pass_at_k(4, 1, 4) == 1
    with pytest.raises(ValueError, match="pass@5"):
        estimate_pass_at_k(4, 1, 5)


def test_report_refuses_a_directory_that_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_module_and_script_are_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "grpokit", "train", "--loss_typ", "x"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert "loss_type" in done.stderr + done.stdout
