"""`grpokit play`: an episode through a pipe, in a terminal, and by a model."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

from grpokit.commands.cli import main
from helpers.agents import WORLDS, make_chat_model
from helpers.launch import ENVIRONMENT
from helpers.places import ROOT
from helpers.tiny import write_rows

GAME = f"{ROOT}/examples/number_game.py:GuessNumber"
CLOSING = '''
"""An environment that says in a file when it is closed."""
from pathlib import Path
from grpokit.environments import Observation

class Closing:
    def reset(self, word):
        self.word = word
    def step(self, message: str) -> Observation:
        return Observation(self.word + "!")
    def close(self):
        Path(__file__).with_name("closed").touch()
'''


@pytest.fixture
def play(monkeypatch, capsys):
    """Plays, with what is typed; returns (exit code, what was printed)."""

    def run(typed: str, *flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = main(["play", *flags])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def closing(tmp_path):
    (tmp_path / "closing.py").write_text(CLOSING)
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "Say it.", "word": word} for word in ("ah", "oh")])
    flags = ("--environment", f"{tmp_path}/closing.py:Closing", "--dataset", f"{tmp_path}/rows.jsonl")
    return flags, tmp_path / "closed"


def test_a_game_is_played_to_its_end(play):
    code, said = play("8\n4\n2\n1\n3\n", "--environment", GAME)
    assert code == 0
    assert said.index("I think of a number from 1 to 15.") < said.index("Lower.") < said.index("Right!")
    assert "reward +1" in said
    assert "ended: done" in said
    assert "its reward: 1" in said


def test_another_seed_is_another_game(play):
    answers = {play("8\n", "--environment", GAME, "--seed", str(seed))[1] for seed in range(6)}
    assert len(answers) > 1


def test_tools_are_shown_and_called_by_json(play):
    call = '{"name": "add", "arguments": {"a": 3, "b": 4}}'
    code, said = play(f"{call}\nseven\n", "--tools", f"{WORLDS}:add")
    assert code == 0
    assert "tool add(a, b): Add two numbers." in said
    assert '{"name": "add", "arguments": {...}}' in said
    assert "tool       7\n" in said
    assert "ended: no_call" in said


def test_a_wrong_call_is_answered_as_the_model_would_be(play):
    code, said = play('{"name": "ad", "arguments": {}}\n', "--tools", f"{WORLDS}:add")
    assert code == 0
    assert "Error: there is no tool 'ad' (did you mean 'add'?)" in said


def test_the_turns_are_bounded(play):
    _, said = play("1\n1\n1\n1\n", "--environment", GAME, "--max_turns", "2")
    assert said.count("assistant ") == 2
    assert "ended: turns" in said


def test_the_row_gives_the_prompt_and_the_columns(play, closing):
    flags, closed = closing
    code, said = play("x\n", *flags, "--row", "2")
    assert code == 0
    assert "user       Say it." in said
    assert "user       oh!" in said
    assert "ended before the episode was over" in said
    assert closed.exists()


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ((), ("--environment", "--tools", "number_game.py:GuessNumber")),
        (("--environment", f"{ROOT}/examples/number_game.py:Guess"), ("did you mean 'GuessNumber'",)),
        (("--environment", GAME, "--row", "0"), ("--row 0", "1 or more")),
        (("--environment", GAME, "--model", "/nowhere"), ("--model /nowhere",)),
    ],
)
def test_mistakes_are_one_line(play, flags, needed):
    code, said = play("", *flags)
    [line] = [line for line in said.splitlines() if not line.startswith("loading")]
    assert code == 2
    assert all(text in line for text in needed), line


def test_a_row_and_columns_that_are_missing_are_named(play, closing):
    flags, _ = closing
    assert "--row 3: --dataset" in play("", *flags, "--row", "3")[1]
    assert "name rows that have it with --dataset" in play("", *flags[:2])[1]


def test_a_model_plays_and_is_shown(play, tmp_path):
    make_chat_model(tmp_path / "model")
    flags = ("--environment", f"{WORLDS}:Echo", "--model", str(tmp_path / "model"), "--max_turns", "3")
    flags += ("--max_completion_length", "200", "--max_turn_length", "20")
    code, said = play("", *flags)
    assert code == 0
    assert "turns." in said
    assert "assistant " in said
    assert "the episode has ended:" in said
    assert play("", *flags)[1] == said
    assert play("", *flags, "--seed", "7")[1] != said


@pytest.mark.parametrize(
    ("key", "code", "last"),
    [("\x04", 0, "before the episode was over"), ("\x03", 130, "stopped by Ctrl-C")],
    ids=["ctrl-d", "ctrl-c"],
)
def test_a_terminal_that_ends_it_closes_the_environment(key, code, last, closing):
    flags, closed = closing
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "grpokit", "play", *flags],
        env=ENVIRONMENT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_the_terminal,
    )
    os.close(theirs)
    try:
        said = until(ours, "> ")
        os.write(ours, b"hello\n")
        said += until(ours, "ah!\r\n> ")
        # Python misses a Ctrl-C between its prompt and the wait for a key.
        time.sleep(0.5)
        os.write(ours, key.encode())
        said += until(ours, last)
        assert process.wait(60) == code
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(ours)
    assert closed.exists()
    assert "Traceback" not in said


def take_the_terminal() -> None:
    """In the child: its keys are signals, whatever the tests were started by."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(terminal: int, wanted: str) -> str:
    """Reads until this is on the screen."""
    said, end = "", time.monotonic() + 60
    while wanted not in said:
        assert time.monotonic() < end, said
        said += os.read(terminal, 4096).decode("utf-8", "replace")
    return said
