"""The guides are run: every command of a page, in order, in one directory, as a reader would.

A block whose info string has a file's name (```yaml first.yaml) is that file. ```bash not-run marks what needs a GPU, a server
or the Hub. To be quick, all numbers of steps are a tenth of the page's, the small model is hardly warmed up, and 16 problems
are held out instead of 128.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from grpokit.commands.cli import COMMANDS, parse
from grpokit.runs.metrics import METRICS
from helpers import forked
from helpers.documented import COMING, arguments_of, skip_what_is_coming
from helpers.places import ROOT

ENGLISH, CHINESE = ROOT / "docs" / "en" / "guides", ROOT / "docs" / "zh" / "guides"
GUIDES = sorted(path.stem for path in ENGLISH.glob("*.md"))
OWN_MODEL = {
    "README.md": "## Your own model, data and reward",
    "README_zh.md": "## 换成自己的模型、数据和奖励",
}
AGENT = "python examples/make_tiny_agent.py --output_dir runs/tiny-agent"
MODEL = "python examples/make_tiny_chat_model.py --output_dir runs/tiny-chat"


class Block(NamedTuple):
    """A fenced block: its language, the rest of its info string, its text."""

    language: str
    mark: str
    text: str


def blocks_of(text: str) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w+) ?(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def own_model(name: str) -> str:
    """The section of README on one's own model."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.split(r"^(?=## )", text[text.index(OWN_MODEL[name]) :], maxsplit=2, flags=re.MULTILINE)[1]


def page(name: str, language: Path = ENGLISH) -> str:
    if name == "README":
        return own_model("README.md" if language == ENGLISH else "README_zh.md")
    return (language / f"{name}.md").read_text(encoding="utf-8")


def shell_lines(block: Block) -> list[str]:
    """The commands of a block, each on one line, without comments."""
    joined = block.text.replace("\\\n", " ")
    return [shlex.join(words) for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def is_run(block: Block) -> bool:
    return block.language == "bash" and block.mark == ""


def quicker(text: str) -> str:
    """A tenth of the steps. The flag of a command and the line of a file alike."""
    return re.sub(
        r"\b((?:max|save|eval)_steps:? +)(\d+)",
        lambda found: found[1] + str(max(1, int(found[2]) // 10)),
        text,
    )


PAGES = [*GUIDES, "README"]
RUN = {name: [block for block in blocks_of(page(name)) if is_run(block)] for name in PAGES}


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """(environment, its directory): `grpokit` and `python` on the path are this checkout's."""
    place = tmp_path_factory.mktemp("workshop")
    (place / "bin").mkdir()
    forked.make_programs(place / "bin", {"grpokit": ["-m", "grpokit"], "python": []})
    environment = os.environ | {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "COLUMNS": "110",
    }
    return environment, place


@pytest.fixture(scope="session")
def workshop(programs):
    """The same, and the small model is there."""
    environment, place = programs
    (place / "examples").symlink_to(ROOT / "examples")
    bash(MODEL + " --steps 40", place, environment)
    held_out = place / "runs" / "tiny-chat" / "eval.jsonl"
    held_out.write_text("".join(held_out.read_text().splitlines(keepends=True)[:16]))
    return environment, place


def bash(script: str, place: Path, environment: dict[str, str]) -> str:
    """Run a script, which must succeed; what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (
        f"{script}\nexit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_run(name, workshop, tmp_path):
    """All of them, one after the other; the model is made once for all pages."""
    text = page(name)
    skip_what_is_coming("\n".join(block.text for block in RUN[name]))
    environment, made = workshop
    for linked in ("examples", "recipes"):
        (tmp_path / linked).symlink_to(ROOT / linked)
    for block in blocks_of(text):
        if block.mark and block.mark != "not-run":
            (tmp_path / block.mark).write_text(quicker(block.text), encoding="utf-8")
        elif is_run(block):
            script = block.text
            if MODEL in script:
                shutil.copytree(
                    made / "runs" / "tiny-chat", tmp_path / "runs" / "tiny-chat", dirs_exist_ok=True
                )
                script = script.replace(MODEL, "true")
            bash(quicker(script).replace(AGENT, AGENT + " --steps 20"), tmp_path, environment)
    for run in (tmp_path / "runs").iterdir():  # each ended, and wrote what it should
        if (run / "metrics.jsonl").exists():
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
            assert (run / "final" / "config.json").exists() or (
                run / "final" / "adapter_config.json"
            ).exists()
            assert (run / "report.html").exists()
            if run.name == "cut":  # all, says the page; this model is less fluent than that one
                assert all(row["completions/clipped_ratio"] > 0.5 for row in rows)


def test_most_commands_of_the_guides_are_run():
    """Commands that can't be run are marked one by one, and are the exception."""
    assert {name: len(blocks) for name, blocks in RUN.items()} == {
        "agents": 7,
        "first-run": 7,
        "lora": 3,
        "not-learning": 3,
        "your-own-reward": 4,
        "README": 2,
    }
    marked = [block for name in PAGES for block in blocks_of(page(name)) if block.mark == "not-run"]
    assert len(marked) == 2


def test_a_command_that_fails_is_found_out(programs, tmp_path):
    with pytest.raises(AssertionError, match="exit code 2"):
        bash("grpokit losses show grop", tmp_path, programs[0])


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_parsed(name, monkeypatch, tmp_path):
    """Also those that aren't run."""
    for block in blocks_of(page(name)):
        if block.mark not in ("", "not-run"):
            (tmp_path / block.mark).write_text(block.text, encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page(name)):
        for line in shell_lines(block) if block.language == "bash" else []:
            arguments = arguments_of(line)
            if arguments is not None:
                skip_what_is_coming(line)
                parse(arguments)


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_commands_and_programs(name):
    """Comments and what a program says of itself may be translated; what runs may not."""
    english, chinese = blocks_of(page(name)), blocks_of(page(name, CHINESE))
    assert [(block.language, block.mark) for block in english] == [
        (block.language, block.mark) for block in chinese
    ]
    for ours, theirs in zip(english, chinese, strict=True):
        if ours.language == "bash":
            assert shell_lines(ours) == shell_lines(theirs)
        elif ours.language == "python":
            assert bare(ours.text) == bare(theirs.text)
        elif ours.language == "yaml":
            assert re.sub(r" *#.*", "", ours.text) == re.sub(r" *#.*", "", theirs.text)


def bare(program: str) -> str:
    """Without docstrings and comments."""
    return re.sub(r"\n\n+", "\n", re.sub(r' *"""(?:.|\n)*?"""\n| +#[^\n]*', "", program))


@pytest.mark.parametrize("language", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_metrics_and_flags_that_a_guide_names_exist(language):
    """`completions/clipped_ratio` is a metric, `--max_resample_times` a flag of some command."""
    flags = {name for command in COMMANDS for name in flags_of(command)} | COMING | {"help"}
    seen = 0
    for name in GUIDES:
        prose = "".join(re.split(r"^```.*?^```$", page(name, language), flags=re.MULTILINE | re.DOTALL))
        for code in re.findall(r"`([^`\n]+)`", prose):
            for flag in re.findall(r"--([a-z_]+)\b(?!-)", code):
                assert flag in flags, (name, code)
                seen += 1
            group = code.partition("/")[0]
            if (
                "/" in code
                and re.fullmatch(r"[a-z_]+/[\w/<>@]+", code)
                and group in {m.partition("/")[0] for m in METRICS}
            ):
                assert code in METRICS or group == "rewards", (name, code)
                seen += 1
    assert seen >= 60


def flags_of(command: str) -> set[str]:
    return {field.name for field in dataclasses.fields(COMMANDS[command])}


def test_the_sandbox_reward_does_what_it_says(tmp_path):
    """1 or 0 as the sandbox says, 0 for code that doesn't end, and an error where the sandbox is broken."""
    [program] = [
        block.text for block in blocks_of(page("your-own-reward")) if block.mark == "sandbox_reward.py"
    ]
    (tmp_path / "sandbox_reward.py").write_text(program)
    spec = importlib.util.spec_from_file_location("sandbox_reward", tmp_path / "sandbox_reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def sandbox(request: httpx.Request) -> httpx.Response:
        code = json.loads(request.content)["code"]
        if code == "endless":
            raise httpx.ReadTimeout("took too long")
        return (
            httpx.Response(500) if code == "broken" else httpx.Response(200, json={"passed": code == "right"})
        )

    def scores(*codes: str) -> list[float]:
        async def run() -> list[float]:
            chats = [[{"role": "assistant", "content": code}] for code in codes]
            async with httpx.AsyncClient(
                transport=httpx.MockTransport(sandbox), base_url="http://sandbox"
            ) as client:
                module.client = client
                return await module.passes_tests(chats, tests=["assert f()"] * len(codes))

        return asyncio.run(run())

    assert scores("right", "wrong", "endless") == [1.0, 0.0, 0.0]
    with pytest.raises(httpx.HTTPStatusError):
        scores("right", "broken")


def test_shares_of_groups_with_a_spread():
    """The shares that not-learning.md gives for problems that are solved one time in ten are right."""
    for generations, share in ((8, "57 %"), (16, "81 %")):
        assert f"{1 - 0.9**generations - 0.1**generations:.0%}".replace("%", " %") == share
        assert share in page("not-learning")
        assert share in page("not-learning", CHINESE)
