"""Mistakes that can be known without the model's weights are found before these are loaded."""

from __future__ import annotations

import pytest

import grpokit
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.rewards import Reward
from grpokit.training.early_stop import check_early_stop
from helpers.tiny import ROWS, tiny_config


def _refuse(*arguments, **options):
    raise AssertionError("the model is loaded")


@pytest.fixture
def unloadable(monkeypatch):
    """Makes loading a model fail."""
    monkeypatch.setattr("grpokit.training.setup.start.load_models", _refuse)
    monkeypatch.setattr("grpokit.training.evaluate_model.load_configured", _refuse)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_column": "problem"}, "--prompt_column problem: no row of"),
        ({"reward_funcs": ("exact_macth",)}, "did you mean 'exact_match'?"),
        ({"reward_funcs": ("exact_match",), "answer_column": "anser"}, "anser"),
        ({"sampler_order": "nowhere.py:order"}, "nowhere.py"),
        ({"eval_dataset": ("a=DATA",), "eval_reward_funcs": ("b=length",)}, "there is no set 'b'"),
        (
            {
                "eval_dataset": ("DATA",),
                "eval_steps": 1,
                "early_stop": "pass@3:2",
                "reward_funcs": ("exact_match",),
            },
            "--early_stop pass@3:2: the evaluations have no figure eval/pass@3 (did you mean 'eval/pass@",
        ),
        ({"max_completion_length": 64}, "the model's context is 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_is_refused_before_its_model_is_loaded(tmp_path, capsys, unloadable, options, said):
    data = str(tmp_path / "train.jsonl")
    options = {
        name: tuple(each.replace("DATA", data) for each in value) if isinstance(value, tuple) else value
        for name, value in options.items()
    }
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, **options)))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert said in capsys.readouterr().err


def test_a_used_directory_is_refused_before_the_model_is_loaded_and_a_finished_run_named(
    tmp_path, capsys, unloadable
):
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path)))
    (tmp_path / "run" / "final").mkdir(parents=True)
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert f"--output_dir {tmp_path / 'run'}: is not empty, and holds a finished run; name another" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [({"prompt_column": "x"}, "prompt_column x: no row of"), ({"answer_column": "anser"}, "anser")],
)
def test_an_evaluation_is_refused_before_its_model_is_loaded(tmp_path, unloadable, options, said):
    model = tiny_config(tmp_path).model
    with pytest.raises(ValueError, match=said):
        grpokit.evaluate(model, "exact_match", ROWS, max_completion_length=6, **options)


def quiet(completions):
    return [0.0 for _ in completions]


def talks(completions, log_metric):
    return [0.0 for _ in completions]


def takes_all(completions, **columns):
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("metric", "rewards", "is_known"),
    [
        ("eval/reward", [quiet], True),
        ("pass@1_greedy", [quiet], True),
        ("maj@4", [quiet], True),
        ("pass@3", [talks], True),  # it may log this
        ("tokens", [quiet], False),
        ("tokens", [quiet, talks], True),
        ("tokens", [takes_all], True),
        ("kl", [talks], False),  # a metric of the run, which no function may log
    ],
)
def test_a_figure_for_early_stop_is_known_or_may_be_logged(metric, rewards, is_known):
    sets = {"": [Reward(each.__name__, each) for each in rewards]}
    if is_known:
        check_early_stop(f"{metric}:2", sets, 4)
    else:
        with pytest.raises(ValueError, match=f"no figure eval/{metric}"):
            check_early_stop(f"{metric}:2", sets, 4)


def test_sets_with_names_have_figures_of_their_own():
    sets = {"math": [Reward("judge", quiet, kind="built in")], "code": [Reward("quiet", quiet)]}
    for metric in ("reward", "math/pass@1", "code/reward", "math/judge/refusals"):
        check_early_stop(f"{metric}:1", sets, 4)
    for metric in ("pass@1", "text/reward", "code/judge/refusals", "math/tokens"):
        with pytest.raises(ValueError, match="have no figure"):
            check_early_stop(f"{metric}:1", sets, 4)
    check_early_stop("", sets, 4)
    check_early_stop("anything:1", {}, 4)


@pytest.mark.parametrize(
    ("file", "text"),
    [("rows.csv", "text\nfirst\n"), ("rows.jsonl", '{"text": "first"}\n'), ("rows.json", '[{"text": "a"}]')],
)
def test_rows_without_a_prompt_are_not_told_to_be_json_lines(tmp_path, capsys, file, text):
    (tmp_path / file).write_text(text)
    config = tiny_config(tmp_path, dataset=str(tmp_path / file), skip_bad_rows=True)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    said = capsys.readouterr().err
    assert "all 1 rows are malformed, the first:" in said
    assert "no prompt; expected an object with a column `prompt`" in said
    assert "one JSON object per line" not in said
