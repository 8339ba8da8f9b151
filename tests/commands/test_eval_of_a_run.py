"""`grpokit eval` with the file of a training run, and `grpokit.evaluate` with several sets."""

from __future__ import annotations

import pytest

import grpokit
from grpokit.commands.cli import main, parse
from grpokit.config.checks import check_model_config
from grpokit.config.yaml import to_yaml
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and held-out rows."""
    place = tmp_path_factory.mktemp("place")
    make_model_dir(place / "model")
    write_rows(place / "eval.jsonl", ROWS[:3])
    return place


@pytest.fixture
def run_file(place):
    """run_file(**options) -> the config.yaml of a run with these options."""

    def write(**options):
        config = tiny_config(place, **{"eval_dataset": str(place / "eval.jsonl"), **options})
        path = place / "config.yaml"
        path.write_text(to_yaml(config))
        return str(path)

    return write


def test_a_runs_file_evaluates_as_the_run_did(run_file, place, capsys):
    path = run_file(
        eval_temperature=0.6, eval_generations=2, eval_samples=2, max_samples=7, learning_rate=0.5
    )
    config = parse(["eval", "--config", path])
    assert config.dataset == (str(place / "eval.jsonl"),)
    assert (config.temperature, config.num_generations, config.max_samples) == (0.6, 2, 2)
    assert config.max_completion_length == 6
    said = capsys.readouterr().out
    assert said.startswith(f"--config {path}: a training run's file; eval takes eval_temperature, ")
    assert "options of training" in said
    assert len(said.splitlines()) == 1


def test_another_dataset_brings_its_own_split_and_all_its_rows(run_file):
    path = run_file(eval_samples=2, dataset_split="train", max_samples=7)
    config = parse(["eval", "--config", path, "--dataset", "other.jsonl"])
    assert (config.dataset, config.dataset_split, config.max_samples) == (("other.jsonl",), "", 0)


def test_a_run_without_held_out_prompts_gives_its_dataset(run_file, place):
    config = parse(["eval", "--config", run_file(eval_dataset=(), max_samples=7)])
    assert (config.dataset, config.max_samples) == ((str(place / "train.jsonl"),), 7)


def test_rewards_of_the_evaluation_go_before_those_of_training(run_file):
    options = {"reward_funcs": ("exact_match", "cosine"), "reward_weights": (1.0, 0.5), "cosine_max_len": 9}
    path = run_file(**options, eval_reward_funcs=("exact_match",))
    config = parse(["eval", "--config", path])
    assert (config.reward_funcs, config.reward_weights, config.cosine_max_len) == (("exact_match",), (), None)
    check_model_config(config)
    path = run_file(**options)
    assert parse(["eval", "--config", path]).cosine_max_len == 9
    check_model_config(parse(["eval", "--config", path, "--reward_funcs", "length"]))
    # An option that the command line gives is still refused.
    given = parse(["eval", "--config", path, "--reward_funcs", "length", "--cosine_max_len", "3"])
    with pytest.raises(ValueError, match="--cosine_max_len 3: does nothing"):
        check_model_config(given)


def test_several_models_take_the_place_of_the_runs(run_file):
    assert parse(["eval", "--config", run_file(), "--models", "a", "b"]).model == ""


def test_the_trained_model_beside_the_file_is_named(run_file, place, capsys):
    (place / "final").mkdir(exist_ok=True)
    (place / "final" / "config.json").write_text("{}")
    parse(["eval", "--config", run_file()])
    assert f"for what it trained, add --model {place / 'final'}" in " ".join(capsys.readouterr().out.split())
    parse(["eval", "--config", run_file(), "--model", "x"])
    assert "that it trained" not in capsys.readouterr().out


def test_what_no_command_has_is_still_refused(run_file, place, capsys):
    path = place / "wrong.yaml"
    path.write_text("beta: 0.1\nlearnig_rate: 1\n")
    assert main(["eval", "--config", str(path)]) == 2
    wanted = f"error: --config {path}: unknown option 'learnig_rate' (did you mean 'learning_rate'?)"
    assert wanted in capsys.readouterr().err
    assert main(["eval", "--config", run_file(), "--beta", "0.1"]) == 2
    assert "an option of grpokit train" in capsys.readouterr().err


def test_a_file_of_eval_says_nothing(place, capsys):
    (place / "eval.yaml").write_text("model: x\nnum_generations: 3\n")
    assert parse(["eval", "--config", str(place / "eval.yaml")]).num_generations == 3
    assert capsys.readouterr().out == ""


def test_the_file_runs(run_file, capsys):
    assert main(["eval", "--config", run_file(reward_funcs=("exact_match",), eval_generations=2)]) == 0
    assert "3 prompts" in capsys.readouterr().out


def test_several_sets_from_python_have_figures_of_their_own(place):
    options = {"num_generations": 2, "max_completion_length": 6, "num_threads": 1}
    sets = {"first": ROWS[:2], "file": place / "eval.jsonl"}
    found = grpokit.evaluate(str(place / "model"), "exact_match", sets, **options)
    assert {"eval/first/pass@1", "eval/file/pass@1", "eval/pass@1"} <= found.keys()
    with pytest.raises(ValueError, match="dataset: a dict of 'prompt'; expected rows"):
        grpokit.evaluate(str(place / "model"), "exact_match", {"prompt": ["1="]}, **options)
