"""The recipes: every value is one that the command line takes, and so is every command that a recipe or the docs give."""

from __future__ import annotations

import dataclasses
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from grpokit.commands.cli import COMMANDS, parse
from grpokit.config.checks import check_train_config
from grpokit.losses.lint import notes
from grpokit.training.setup.loss import loss_from_config
from helpers.documented import arguments_of, skip_what_is_coming
from helpers.places import ROOT
from helpers.tiny import ROWS, make_model_dir, write_rows

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NAMES = [path.name for path in RECIPES]


def header(path: Path) -> str:
    """The comment that a recipe begins with, without its `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#") for line in lines[:end]) + "\n"


def commands(text: str) -> list[str]:
    """The indented commands of a header, each on one line."""
    joined = re.sub(r" \\\n +", " ", text)
    return re.findall(r"^ {3}(\S.*)$", joined, re.MULTILINE)


GIVEN = [(path.name, command) for path in RECIPES for command in commands(header(path))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model and a dataset that stand in for a recipe's own."""
    place = tmp_path_factory.mktemp("tiny")
    return {
        "model": str(make_model_dir(place / "model")),
        "dataset": str(write_rows(place / "train.jsonl", ROWS)),
        "output_dir": str(place / "run"),
    }


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_is_what_train_takes(path, tiny):
    """Its flags are parsed, pass the checks, and make a loss; nothing in it acts against another."""
    skip_what_is_coming(path.read_text(encoding="utf-8"))
    config = parse(["train", "--config", str(path)])
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in written.items():
        parsed = getattr(config, name)
        listed = [value] if isinstance(parsed, tuple) and not isinstance(value, list) else value
        assert (list(parsed) if isinstance(parsed, tuple) else parsed) == listed, name
    changed = {**tiny, "eval_dataset": tiny["dataset"] if config.eval_dataset else ""}
    check_train_config(dataclasses.replace(config, **changed))
    loss = loss_from_config(config)
    updates = config.num_iterations * config.updates_per_step
    said = notes(loss, updates, sampler_is_trainer=config.sampler == "transformers")
    assert [note for note in said if "no mistake" not in note] == []


def test_a_step_is_what_the_comments_say():
    """`# 64 × 16 = 1,024 completions a step`, and a row of the longest prompt and completion fits a micro-batch."""
    compared = 0
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        for found in re.finditer(r"# (?:(\d+) )?× (\d+) = ([\d,]+) completions", text):
            prompts, count = values["prompts_per_step"], values["num_generations"]
            assert int(found[1] or prompts) == prompts
            assert int(found[2]) == count
            assert int(found[3].replace(",", "")) == prompts * count
            compared += 1
        longest = values.get("max_prompt_length", 0) + values["max_completion_length"]
        assert longest <= values.get("micro_batch_tokens", 8192), path.name
    assert compared >= 4


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_says_how_it_is_run(path):
    """A header with its own command; where a GPU is meant, that nothing was measured on one."""
    text = header(path)
    assert any(f"--config recipes/{path.name}" in command for command in commands(text))
    if re.search(r"\bGPUs?\b", text):
        assert re.search(r"nothing here has been measured on a GPU|unmeasured", text, re.IGNORECASE)


@pytest.mark.parametrize(("name", "command"), GIVEN, ids=[f"{n}-{i}" for i, (n, _) in enumerate(GIVEN)])
def test_a_command_of_a_recipe_is_one(name, command, monkeypatch):
    """Every command in a header is parsed by the command line; one of another program is at least a shell's."""
    arguments = arguments_of(command)
    if arguments is None:
        assert "vllm serve" in command, f"{name}: {command}"
        return
    skip_what_is_coming(command + "\n" + (ROOT / "recipes" / name).read_text(encoding="utf-8"))
    monkeypatch.chdir(ROOT)
    assert isinstance(parse(arguments), COMMANDS[arguments[0]])


def test_server_and_trainer_agree():
    """The server's address, length and log-probs are those that the trainer needs."""
    served = 0
    for path in RECIPES:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for command in commands(header(path)):
            if "vllm serve" not in command:
                continue
            words = shlex.split(command)
            option = dict(pairwise(words))
            assert "VLLM_SERVER_DEV_MODE=1" in words
            assert option["serve"] == values["model"]
            assert option["--logprobs-mode"] == "processed_logprobs"
            assert option["--dtype"] == values["dtype"]
            assert f"http://{option['--host']}:{option['--port']}" == values["vllm_url"]
            longest = values["max_prompt_length"] + values["max_completion_length"]
            assert int(option["--max-model-len"]) >= longest
            served += 1
    assert served >= 2


def test_a_command_that_is_none_is_found_out(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="prompts_per_stop: no such option of grpokit train"):
        parse(arguments_of("grpokit train --config recipes/demo.yaml --prompts_per_stop 3"))


PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").glob("*.py"),
    ROOT / "Makefile",
]


def test_every_recipe_that_is_named_exists():
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"recipes/([\w.-]+\.yaml)", page.read_text(encoding="utf-8"))
    }
    assert [found for found in named if found[1] not in NAMES] == []
    assert {name for _, name in named} == set(NAMES)  # and none that nobody finds
