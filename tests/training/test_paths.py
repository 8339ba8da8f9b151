"""Paths: `~`, two spellings of one path, and runs whose model, data and code have moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from grpokit import GRPOTrainer
from grpokit.commands.cli import main, parse
from grpokit.config.options import TrainConfig
from grpokit.config.paths import expand_home, resolved
from grpokit.config.yaml import to_yaml
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.tiny import make_model_dir, tiny_config

SHORT = {"max_steps": 1, "save_steps": 1, "num_iterations": 1, "prompts_per_step": 2, "num_generations": 2}
RESUME = ["--max_steps", "2", "--resume_from_checkpoint", "auto"]


def run(directory: Path, *flags: str, **changes) -> int:
    config = tiny_config(directory, **(SHORT | changes))
    path = directory / "run.yaml"
    path.write_text(to_yaml(config))
    return main(["train", "--config", str(path), *flags])


# --------------------------------------------------------------------------- ~


def test_every_option_that_is_a_path_takes_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["model", "ref_model", "dataset", "eval_dataset", "output_dir", "resume_from_checkpoint"]
    code = ["sampler", "advantage_estimator", "group_filter", "optim"]
    flags = [f"--{name}=~/x" for name in paths] + [f"--{name}=~/x.py:f" for name in code]
    config = parse(["train", *flags, "--reward_funcs", "~/r.py:f", "exact_match"])
    given = [
        " ".join(value) if isinstance(value := getattr(config, name), tuple) else value for name in paths
    ]
    assert given == ["/home/me/x"] * len(paths)
    assert parse(["train", "--dataset", "~/a", "b=~/x:0.5"]).dataset == ("/home/me/a", "b=/home/me/x:0.5")
    assert [getattr(config, name) for name in code] == ["/home/me/x.py:f"] * len(code)
    assert config.reward_funcs == ("/home/me/r.py:f", "exact_match")
    assert parse(["report", "~/run"]).run == "/home/me/run"
    assert parse(["eval", "--output_file=~/f.json"]).output_file == "/home/me/f.json"
    assert expand_home(TrainConfig(model="org/name")).model == "org/name"


def test_a_run_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "--output_dir=~/out")
    (tmp_path / "home.yaml").write_text((tmp_path / "run.yaml").read_text())
    home = ["--model=~/model", "--dataset=~/train.jsonl", "--output_dir=~/second"]
    assert main(["train", "--config=~/home.yaml", *home]) == 0
    assert (tmp_path / "out" / "final").is_dir()
    assert (tmp_path / "second" / "final").is_dir()
    assert not (tmp_path / "~").exists()


def test_a_trainer_takes_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_model_dir(tmp_path / "model")
    trainer = GRPOTrainer(
        "~/model", f"{REWARDS}:digits_in_order", train_dataset=[{"prompt": "1="}], output_dir="~/out"
    )
    assert (trainer.args.model, trainer.args.output_dir) == (f"{tmp_path}/model", f"{tmp_path}/out")


# --------------------------------------------------------------------------- spellings


def test_two_spellings_of_one_path_are_the_same(tmp_path, monkeypatch, capsys):
    """A slash at the end, a relative path, a symbolic link, `..`."""
    assert run(tmp_path) == 0
    (tmp_path / "link").symlink_to(tmp_path / "train.jsonl")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    paths = ["--model", "model/", "--dataset", "link", "--reward_funcs", f"{REWARDS.parent}/../helpers/"]
    paths[-1] += f"{REWARDS.name}:digits_in_order"
    assert main(["train", "--config", "run.yaml", *paths, *RESUME]) == 0
    out = capsys.readouterr().out
    assert "changed since: max_steps: 1 → 2" in out
    assert "reward_funcs:" not in out.split("resuming from")[1].split("plan:")[0]
    assert "moved since" not in out


@pytest.mark.parametrize("value", ["m12", "m12/", "./m12", "x/../m12"])
def test_resolved_paths(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved(value) == f"{tmp_path}/m12"
    assert resolved(f"{value.rstrip('/')}.py:f") == f"{tmp_path}/m12.py:f"


# --------------------------------------------------------------------------- moved


def test_a_run_that_has_moved_with_all_it_reads_goes_on_to_the_byte(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    code = tmp_path / "a" / "rewards.py"
    shutil.copy(REWARDS, code)
    functions = {"reward_funcs": (f"{code}:digits_in_order",), "beta": 0.1}
    assert (
        run(tmp_path / "a", "--max_steps", "2", "--output_dir", str(tmp_path / "expected"), **functions) == 0
    )
    assert run(tmp_path / "a", **functions) == 0
    shutil.move(tmp_path / "a", tmp_path / "b")
    capsys.readouterr()
    functions = {"reward_funcs": (f"{tmp_path / 'b'}/rewards.py:digits_in_order",), "beta": 0.1}
    assert run(tmp_path / "b", *RESUME, **functions) == 0
    out = capsys.readouterr().out
    for name, file in (("model", "model"), ("dataset", "train.jsonl")):
        said = f"moved since: {name}: {tmp_path}/a/{file} → {tmp_path}/b/{file} (the same content)"
        assert said in out
    assert "moved since: reward_funcs" in out
    weights = [
        (path / "final" / "model.safetensors").read_bytes()
        for path in (tmp_path / "b" / "run", tmp_path / "expected")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("changed", ["model", "dataset"])
def test_another_model_or_dataset_at_another_place_is_refused(tmp_path, capsys, changed):
    assert run(tmp_path) == 0
    if changed == "model":  # of the same shapes
        other = make_model_dir(tmp_path / "other", seed=1)
    else:
        other = tmp_path / "other.jsonl"
        other.write_text((tmp_path / "train.jsonl").read_text().replace("31", "13"))
    capsys.readouterr()
    assert run(tmp_path, f"--{changed}", str(other), *RESUME) == 2
    assert f"error: --{changed}: " in capsys.readouterr().err


def test_the_initial_model_need_not_exist_any_more(tmp_path, capsys):
    """All weights are trained and there is no KL term: the checkpoint has everything."""
    config = tiny_config(tmp_path, **SHORT)
    assert run(tmp_path) == 0
    model = tmp_path / "model"
    model.rename(tmp_path / "gone")
    command = ["train", "--config", str(tmp_path / "run.yaml")]
    assert main([*command, *RESUME]) == 0
    assert [row["step"] for row in rows(tmp_path / "run", "metrics.jsonl")] == [1, 2]
    sources = [
        json.loads((tmp_path / "run" / f"checkpoint-{n}" / "trainer" / "state.json").read_text())["sources"]
        for n in (1, 2)
    ]
    assert sources[0][config.model] == sources[1][config.model]
    for needs in (["--beta", "0.1"], ["--lora_r", "4"]):
        assert main([*command, *RESUME, *needs]) == 2
        assert f"error: --model {model}: no such" in capsys.readouterr().err
    assert main([*command, "--output_dir", str(tmp_path / "new")]) == 2


def test_from_python_the_initial_model_need_not_exist_either(tmp_path):
    assert run(tmp_path) == 0
    (tmp_path / "model").rename(tmp_path / "gone")
    config = tiny_config_of(tmp_path)
    trainer = GRPOTrainer(args=config)
    assert len(trainer.train(resume_from_checkpoint=True)) == 1


def tiny_config_of(tmp_path: Path) -> TrainConfig:
    (tmp_path / "gone").rename(tmp_path / "model")
    config = tiny_config(tmp_path, **(SHORT | {"max_steps": 2}))
    (tmp_path / "model").rename(tmp_path / "gone")
    return config
