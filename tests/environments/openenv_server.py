# ruff: noqa: E402 - a module is hidden before the others are imported
"""Starts real OpenEnv servers on the loopback interface, a process each, and prints their URLs as JSON.

`worlds` has several environments under paths of its own; `fragile` ends its whole process once the model says something.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

sys.modules["gradio"] = None  # OpenEnv does without it, and its import takes as long as all others

import uvicorn
from fastapi import FastAPI
from fastmcp import FastMCP
from openenv.core.env_server import (
    Action,
    CallToolAction,
    CallToolObservation,
    Environment,
    MCPEnvironment,
    Observation,
    State,
    create_app,
)
from openenv.core.env_server.types import EnvironmentMetadata


class SayAction(Action):
    """Says something."""

    message: str


class TextObservation(Observation):
    """A text."""

    text: str


class Parrot(Environment):
    """Answers by the length of what was said, for as many turns as the seed says."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, word="", **kwargs):
        self.seed, self.left = seed, 1 + seed % 3
        return TextObservation(text=f"Seed {seed}, word {word}.")

    def step(self, action, timeout_s=None, **kwargs):
        self.left -= 1
        if action.message == "raise":
            raise RuntimeError("the parrot is dead")
        if action.message == "sleep":
            time.sleep(1.0)
        reward = None if self.left == 1 else 0.25 * (1 + len(action.message) % 4)
        return TextObservation(text=f"{len(action.message)} characters", reward=reward, done=self.left <= 0)

    @property
    def state(self):
        return State()

    def get_metadata(self):
        return EnvironmentMetadata(name="A parrot", description="Repeats.")


class Fragile(Parrot):
    """Ends its whole server."""

    def step(self, action, timeout_s=None, **kwargs):
        os._exit(1)


class MoveAction(Action):
    """Moves on the board."""

    x: int
    y: int = 0


class Board(Parrot):
    """Adds up the moves."""

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.at = [0, 0]
        return TextObservation(text="")

    def step(self, action, timeout_s=None, **kwargs):
        if action.x == 100:
            time.sleep(1.0)
        if action.x < 0:
            raise ValueError("no way back")
        self.at = [self.at[0] + action.x, self.at[1] + action.y]

        class At(Observation):
            at: list[int]
            moves: int

        return At(at=self.at, moves=1, reward=action.x, done=self.at[0] >= 5)

    def get_metadata(self):
        return EnvironmentMetadata(name="Board", description="A board.")


class Sums(MCPEnvironment):
    """Tools by MCP. Its steps are rewarded."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        mcp = FastMCP("sums")

        @mcp.tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        @mcp.tool
        def fail(why: str) -> str:
            """Fails."""
            raise ValueError(why)

        super().__init__(mcp)

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation()

    async def step_async(self, action, timeout_s=None, **kwargs):
        seen = await super().step_async(action, timeout_s=timeout_s, **kwargs)
        if isinstance(seen, CallToolObservation):
            seen.reward, seen.done = 0.5, seen.result is not None and seen.result.data == 100
        return seen

    def _step_impl(self, action, timeout_s=None, **kwargs):
        return Observation()

    @property
    def state(self):
        return State()


def worlds() -> FastAPI:
    """Returns the application with all environments."""
    app = FastAPI()
    for path, environment, action, observation, sessions in (
        ("parrot", Parrot, SayAction, TextObservation, 100),
        ("narrow", Parrot, SayAction, TextObservation, 2),
        ("board", Board, MoveAction, Observation, 100),
        ("sums", Sums, CallToolAction, CallToolObservation, 100),
    ):
        app.mount(f"/{path}", create_app(environment, action, observation, max_concurrent_envs=sessions))
    return app


def main() -> None:
    """Serves until standard input ends, which it does when the tests' process is gone."""
    found = {"worlds": worlds(), "fragile": create_app(Fragile, SayAction, TextObservation)}
    urls = {}
    children = []
    for name, app in found.items():
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        urls[name] = f"http://127.0.0.1:{listening.getsockname()[1]}"
        child = os.fork()
        if child == 0:
            uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[listening])
            os._exit(0)
        children.append(child)
        listening.close()
    print(json.dumps(urls), flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, 9)


if __name__ == "__main__":
    main()
