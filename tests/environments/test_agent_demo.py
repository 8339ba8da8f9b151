"""`make demo-agent`: the tool is needed, the command line is one that is taken, and a short version of the demo learns."""

from __future__ import annotations

import json
import re

import pytest

from grpokit.commands.cli import parse
from grpokit.common.imports import load_object
from grpokit.environments.tools import load_tools
from helpers import forked
from helpers.documented import arguments_of
from helpers.places import ROOT

ZOO = f"{ROOT}/examples/zoo.py"


def command() -> str:
    """The demo's `grpokit train`, on one line."""
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo-agent: setup\n")[2].partition("\n\n")[0]
    [line] = re.findall(r"grpokit train .*", recipe.replace("\\\n", " "))
    return line.replace("$(DEMO_FLAGS)", "")


def run(program: str, *words: str) -> None:
    done = forked.run(program, *words)
    assert done.returncode == 0, done.stderr


def test_no_animal_is_told_by_its_words():
    """The most frequent food of a kind or of an animal is right for few of them: a guess is no answer."""
    food_of = load_object(f"{ZOO}:food_of", "zoo")
    kinds, animals = (load_object(f"{ZOO}:{name}", "zoo") for name in ("KINDS", "ANIMALS"))
    foods = {(kind, animal): food_of(f"{kind} {animal}") for kind in kinds for animal in animals}
    for place, words in enumerate((kinds, animals)):
        for word in words:
            eaten = [food for names, food in foods.items() if names[place] == word]
            assert max(map(eaten.count, eaten)) <= 8
    assert foods["brave", "otter"] == "oats"  # as the examples say


def test_the_tool_answers_for_animals_of_the_zoo_only():
    [tool] = load_tools([f"{ZOO}:lookup"]).values()
    assert tool.function(animal="brave otter") == "oats"
    with pytest.raises(ValueError, match="no brave cat"):
        tool.function(animal="brave cat")


def test_the_command_of_the_makefile_is_taken():
    config = parse(arguments_of(command()))
    assert config.tools == ("examples/zoo.py:lookup",)
    assert config.model.startswith("runs/tiny-agent/")


@pytest.mark.slow
def test_a_short_version_of_the_demo_learns_to_ask_the_tool(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made, out = str(tmp_path / "tiny-agent"), str(tmp_path / "demo-agent")
    run(str(ROOT / "examples" / "make_tiny_agent.py"), "--output_dir", made, "--steps", "240")
    words = command().replace("runs/tiny-agent", made).replace("runs/demo-agent", out)
    arguments = arguments_of(re.sub(r"--eval_dataset \S+ |--max_steps \d+", "", words))
    run("grpokit", *arguments, "--max_steps", "12", "--lr_scheduler_type", "constant")
    rows = [json.loads(line) for line in (tmp_path / "demo-agent" / "metrics.jsonl").read_text().splitlines()]

    def mean(name: str, some: list[dict]) -> float:
        return sum(row[name] for row in some) / len(some)

    assert mean("reward", rows[-4:]) > mean("reward", rows[:2]) + 0.2
    assert mean("tools/call_frequency", rows[-4:]) > mean("tools/call_frequency", rows[:2]) + 0.2
    assert mean("tools/call_frequency", rows[:2]) < 0.7
    page = (tmp_path / "demo-agent" / "report.html").read_text()
    assert "lookup" in page
