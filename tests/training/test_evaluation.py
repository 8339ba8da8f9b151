"""Majority votes, early stopping, and several models in one table."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

import grpokit
from grpokit.commands.cli import main
from grpokit.common.console import comparison_table
from grpokit.config.checks import check_train_config
from grpokit.config.yaml import to_yaml
from grpokit.training.compare_models import DIFFERENCE, expand_runs, paired
from grpokit.training.early_stop import has_stalled
from grpokit.training.evaluation import Evaluation
from grpokit.training.voting import estimate_maj_at_k, majority, vote_of
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        (r"\boxed{1} and then \boxed{ 2 + x }", "2+x"),
        ("from 3,000 to 4.5", "4.5"),
        ("1,250 in all.", "1250"),
        ("minus: -7", "-7"),
        (" none ", "none"),
    ],
)
def test_a_vote_is_the_last_box_else_the_last_number_else_the_text(text, vote):
    assert vote_of(text) == vote


def test_a_majority_is_right_if_the_right_answer_is_most_common_and_ties_are_broken_by_lot():
    assert majority([True, True, False, False], ["2", "two", "3", "4"]) == 1
    assert majority([True, False, False], ["2", "3", "3"]) == 0
    assert majority([True, False, False], ["2", "3", "4"]) == pytest.approx(1 / 3)
    assert majority([False], ["3"]) == 0


def test_maj_at_k_is_the_mean_over_all_subsets():
    passed = [True, False, False, True, False]
    votes = ["7", "8", "8", "7.0", "9"]
    for k in range(1, 6):
        subsets = list(itertools.combinations(range(5), k))
        want = sum(majority([passed[i] for i in s], [votes[i] for i in s]) for s in subsets) / len(subsets)
        assert estimate_maj_at_k(passed, votes, k) == pytest.approx(want)
    assert estimate_maj_at_k(passed, votes, 1) == pytest.approx(2 / 5)  # pass@1
    # Of many subsets, some are drawn: close to the hypergeometric chance that most of 5 of 30 are right.
    want = sum(math.comb(15, c) * math.comb(15, 5 - c) for c in (3, 4, 5)) / math.comb(30, 5)
    drawn = estimate_maj_at_k([True, False] * 15, ["1", "2"] * 15, 5)
    assert drawn == pytest.approx(want, abs=0.03)
    assert drawn == estimate_maj_at_k([True, False] * 15, ["1", "2"] * 15, 5)
    with pytest.raises(ValueError, match="maj@6"):
        estimate_maj_at_k(passed, votes, 6)


def test_a_run_has_stalled_once_its_last_evaluations_were_no_better():
    seen = [{"eval/reward": value} for value in (0.1, 0.5, 0.4, 0.5, 0.3)]
    assert [has_stalled("eval/reward:3", seen[:n]) for n in range(6)] == [False] * 5 + [True]
    assert not has_stalled("eval/reward:4", seen)
    assert not has_stalled("", seen)
    with pytest.raises(
        ValueError, match=r"--early_stop eval/pass@3:1: .* have no figure eval/pass@3; they have"
    ):
        has_stalled("eval/pass@3:1", seen)


@pytest.mark.parametrize("setting", ["eval/reward", "eval/reward:0", ":3", "eval/reward:many"])
def test_an_early_stop_of_another_form_is_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=f"--early_stop {setting}: expected METRIC:PATIENCE"):
        check_train_config(tiny_config(tmp_path, early_stop=setting, eval_steps=1))
    with pytest.raises(ValueError, match="needs evaluations"):
        check_train_config(tiny_config(tmp_path, early_stop="eval/reward:2"))


def test_a_run_ends_early_and_a_resumed_one_ends_there_too(tmp_path, capsys):
    """Without a learning rate, no evaluation is better than the first: two after it are the patience."""
    held_out = str(write_rows(tmp_path / "eval.jsonl", ROWS[:2]))
    config = tiny_config(
        tmp_path, eval_dataset=held_out, eval_steps=1, early_stop="reward:2", learning_rate=0.0, save_steps=1
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = ["train", "--config", str(tmp_path / "run.yaml"), "--max_steps", "5"]
    assert main(command) == 0
    assert "--early_stop reward:2: ends the run after 2 steps" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path / "run", "metrics.jsonl")] == [1, 2]
    evaluations = rows(tmp_path / "run", "evaluations.jsonl")
    assert 0 <= evaluations[0]["eval/maj@4"] <= 1
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    assert main([*command, "--resume_from_checkpoint", checkpoint]) == 0
    assert "ends the run after 2 steps" in capsys.readouterr().out
    assert rows(tmp_path / "run", "evaluations.jsonl") == evaluations


def test_differences_are_paired_over_the_prompts_that_both_have():
    one = {f"a.jsonl:{n}": share for n, share in enumerate((0.5, 1.0, 0.75, math.nan))}
    first = {row: share - 0.25 for row, share in one.items()} | {"a.jsonl:9": 0.0}
    assert paired(Evaluation({}, one), Evaluation({}, first)) == {DIFFERENCE: 0.25, f"{DIFFERENCE}_ci95": 0.0}


def test_models_are_compared_on_the_same_prompts(tmp_path, capsys):
    one, two = (str(make_model_dir(tmp_path / name, seed=seed)) for name, seed in (("one", 0), ("two", 1)))
    data, file = str(write_rows(tmp_path / "eval.jsonl", ROWS)), tmp_path / "found.json"
    reward = f"{tmp_path}/reward.py:begins"
    (tmp_path / "reward.py").write_text(
        "def begins(completions):\n    return [float(c[:1] in '02468') for c in completions]\n"
    )
    options = ["--reward_funcs", reward, "--num_generations", "4", "--max_completion_length", "6"]
    command = ["eval", "--dataset", data, *options, "--dtype", "float64", "--output_file", str(file)]
    assert main([*command, "--models", one, two, two]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main([*command, "--models", one, two]) == 0
    said = capsys.readouterr().out
    assert "2 models on" in said
    found = json.loads(file.read_text())
    assert list(found) == [one, two]
    assert found[one][DIFFERENCE] == 0
    gap = found[two]["eval/pass@1"] - found[one]["eval/pass@1"]
    assert found[two][DIFFERENCE] == pytest.approx(gap)
    assert 0 < found[two][f"{DIFFERENCE}_ci95"] < math.inf
    from_python = grpokit.evaluate(
        [one, two], reward, data, num_generations=4, max_completion_length=6, dtype="float64"
    )
    assert from_python == found


def test_each_dataset_has_its_own_figures(tmp_path):
    model = str(make_model_dir(tmp_path / "model"))
    first = str(write_rows(tmp_path / "a.jsonl", ROWS[:4]))
    second = str(write_rows(tmp_path / "b.jsonl", ROWS[4:]))
    options = ["--reward_funcs", f"{REWARDS}:digits_in_order", "--num_generations", "4", "--dtype", "float64"]
    found = []
    for number, data in enumerate([[first], [first, f"other={second}"]]):
        file = tmp_path / f"{number}.json"
        command = [
            "eval",
            "--model",
            model,
            *options,
            "--max_completion_length",
            "6",
            "--output_file",
            str(file),
        ]
        assert main([*command, "--dataset", *data]) == 0
        found.append(json.loads(file.read_text()))
    alone, both = found
    assert {f"eval/a/{name.removeprefix('eval/')}" for name in alone} < set(both)
    assert both["eval/a/reward"] == pytest.approx(alone["eval/reward"])
    assert both["eval/reward"] == pytest.approx(
        (4 * both["eval/a/reward"] + 6 * both["eval/other/reward"]) / 10
    )
    assert not [name for name in alone if name.count("/") > 1]


def test_a_runs_directory_stands_for_its_models(tmp_path):
    for name in ("checkpoint-10", "checkpoint-2", "best", "final"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").write_text("{}")
    names = [path.rpartition("/")[2] for path in expand_runs([str(tmp_path / "run")])]
    assert names == ["checkpoint-2", "checkpoint-10", "best", "final"]
    assert expand_runs([str(tmp_path / "none")]) == [str(tmp_path / "none")]


EVEN_AND_THREE = """
def even(completions):
    return [float(c[:1] in tuple("02468")) for c in completions]


def three(completions):
    return [float(c[:1] == "3") for c in completions]
"""


def test_several_sets_have_names_and_rewards_of_their_own(tmp_path, capsys):
    """From the command line and from Python, where a set may be rows in memory."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text(EVEN_AND_THREE)
    one, two = write_rows(tmp_path / "one.jsonl", ROWS[:3]), write_rows(tmp_path / "two.jsonl", ROWS[3:5])
    config = tiny_config(
        tmp_path,
        reward_funcs=(f"{rewards}:even",),
        eval_dataset=(f"math={one}", f"code={two}"),
        eval_reward_funcs=(f"code={rewards}:three",),
        eval_steps=1,
        max_steps=1,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    first, last = rows(tmp_path / "run", "evaluations.jsonl")
    for row in (first, last):
        both = row["eval/math/reward"], row["eval/code/reward"]
        assert row["eval/reward"] == pytest.approx(sum(both) / 2)
        assert row["eval/code/reward"] == row["eval/code/pass@1"]
        assert "eval/pass@1" not in row
    assert "math, pass@1" in (tmp_path / "run" / "report.html").read_text()
    said = capsys.readouterr().out.splitlines()
    at = next(place for place, line in enumerate(said) if line.startswith("evaluation at step 1: reward "))
    ours = list(itertools.takewhile(lambda line: line.startswith("  "), said[at + 1 :]))
    assert [line.split()[0] for line in ours if not line.startswith("    ")] == ["code", "math"]
    assert max(map(len, ours)) <= 80
    figures = [name for name in last if name.count("/") == 2]
    assert len(figures) == len(re.findall(r" \d+\.\d{3}\b", " ".join(ours)))
    alone = grpokit.evaluate(
        config.model, f"{rewards}:even", str(one), num_generations=4, max_completion_length=6, dtype="float64"
    )
    assert alone["eval/pass@1_greedy"] == first["eval/math/pass@1_greedy"]
    assert alone.keys() == {name.replace("math/", "") for name in first if "code" not in name} - {"step"}
    trainer = grpokit.GRPOTrainer(
        config.model,
        f"{rewards}:even",
        train_dataset=config.dataset[0],
        eval_dataset={"math": ROWS[:3], "code": two},
        eval_reward_funcs=[f"code={rewards}:three"],
        output_dir=str(tmp_path / "again"),
        max_completion_length=6,
        dtype="float64",
        num_threads=1,
    )
    assert trainer.evaluate() == {name: value for name, value in first.items() if name != "step"}
    with pytest.raises(ValueError, match="eval_dataset: the set 'my math' needs a name of letters"):
        grpokit.GRPOTrainer(config.model, f"{rewards}:even", eval_dataset={"my math": ROWS[:3]})
    for wrong, message in (
        (
            {"eval_reward_funcs": ("art=even",)},
            "there is no set 'art' (did you mean 'math'?); there are math, code",
        ),
        ({"eval_dataset": (str(one), str(one))}, "two datasets are named 'one'"),
        ({"eval_dataset": (f"{one}:0.5",)}, "one dataset needs no weight"),
        ({"eval_dataset": (), "eval_steps": 0}, "there is no --eval_dataset"),
    ):
        (tmp_path / "wrong.yaml").write_text(
            to_yaml(replace(config, output_dir=str(tmp_path / "w"), **wrong))
        )
        assert main(["train", "--config", str(tmp_path / "wrong.yaml")]) == 2
        assert message in capsys.readouterr().err


def test_a_first_reward_that_never_passes_is_said(tmp_path, capsys):
    config = {
        "eval_dataset": str(tmp_path / "train.jsonl"),
        "eval_steps": 1,
        "eval_samples": 2,
        "max_steps": 1,
    }
    for rewards, said in (("length", 1), (f"{REWARDS}:digits_in_order", 0)):
        (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, reward_funcs=(rewards,), **config)))
        assert (
            main(
                ["train", "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / f"r{said}")]
            )
            == 0
        )
        assert (
            capsys.readouterr().out.count("note: a completion passes (pass@k) where the first reward") == said
        )


def test_a_comparison_cuts_no_number_in_a_narrow_terminal():
    figures = {f"eval/figure_{n}{c}": 0.25 for n in range(6) for c in ("", "_ci95")}
    for count in (2, 3, 4, 9):
        table = comparison_table({f"runs/long-name/checkpoint-{n}": figures for n in range(count)}, "models")
        lines = io.StringIO()
        Console(file=lines, width=80).print(table)
        assert "…" not in lines.getvalue()
        assert "long-name" not in lines.getvalue()
        if count <= 3:
            assert lines.getvalue().count("0.250") == 12 * count


def test_functions_from_python_score_the_sets(tmp_path):
    def even(completions):
        return [float(c[:1] in tuple("02468")) for c in completions]

    def three(completions):
        return [float(c[:1] == "3") for c in completions]

    config = tiny_config(tmp_path, eval_steps=1, max_steps=1, eval_samples=3)
    figures = {}
    for case, eval_rewards in {"dict": {"code": [three, "length"]}, "one": three}.items():
        trainer = grpokit.GRPOTrainer(
            model=config.model,
            reward_funcs=even,
            args=replace(config, output_dir=str(tmp_path / case)),
            train_dataset=ROWS,
            eval_dataset={"math": ROWS[:3], "code": ROWS[:3]},
            eval_reward_funcs=eval_rewards,
        )
        trainer.train()
        figures[case] = rows(tmp_path / case, "evaluations.jsonl")[0]
    assert figures["dict"]["eval/code/pass@1"] == figures["one"]["eval/code/pass@1"]
    assert figures["one"]["eval/math/pass@1"] == figures["one"]["eval/code/pass@1"]
    assert figures["dict"]["eval/code/reward"] != figures["one"]["eval/code/reward"]
    named = {"args": config, "model": config.model, "reward_funcs": even, "train_dataset": ROWS}
    with pytest.raises(ValueError, match="eval_reward_funcs: a int; expected a function"):
        grpokit.GRPOTrainer(**named, eval_dataset=ROWS, eval_reward_funcs={"": 3})
    with pytest.raises(ValueError, match="eval_reward_funcs: two functions are called even"):
        grpokit.GRPOTrainer(**named, eval_dataset=ROWS, eval_reward_funcs=_another("even"))


def _another(name: str):
    def judged(completions):
        return [0.0] * len(completions)

    judged.__name__ = name
    return judged
