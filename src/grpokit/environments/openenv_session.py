"""A session of an OpenEnv server: one episode, from its reset to its last reward."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..types import NoRoom
from .contract import EnvironmentFailed, Observation
from .tools import answer_text

CONNECT_LIMIT = 30.0  # seconds
ENDLESS = 1e9  # seconds: --tool_timeout bounds calls, not the client
OF_EVERY_OBSERVATION = ("done", "reward", "metadata")
# Codes of errors that the model's action caused. Any other error is the server's fault.
OF_THE_ACTION = ("VALIDATION_ERROR", "INVALID_JSON", "EXECUTION_ERROR")


class ServerError(Exception):
    """An error that the server answered. Example: `ServerError("VALIDATION_ERROR", "row: Field required")`

    Args:
        code: OpenEnv's name of it.
        message: what it says.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Action:
    """What the model may do. `read_action` finds it in the server's schema."""

    is_mcp: bool
    text_field: str | None  # the only field, where it is a text
    fixed: Mapping[str, Any]  # fields that have one value, which the model never writes
    schema: Mapping[str, Any]  # the other fields


class Session:
    """One episode on a server. All its coroutines run in the event loop that `reset` ran in.

    Args:
        url: the server's.
        flag: what named it, for messages.
        action: what the model may do.
    """

    def __init__(self, url: str, flag: str, action: Action) -> None:
        self.url, self.flag, self.action = url, flag, action
        self.reward = 0.0  # the sum of the steps'
        self.done = False
        self._client: Any = None
        self._owed = 0  # answers that have not come yet

    async def reset(self, **columns: Any) -> str | None:
        """Begins the session and the episode. The server uses only the columns that its `reset` names.

        Returns:
            What is added to the prompt.

        Raises:
            NoRoom: the server has as many sessions as it may have.
            EnvironmentFailed: it can't be reached, or answered an error.
        """
        await self._connect()
        try:
            seen = await self._ask("reset", json.loads(json.dumps(columns, default=str)))
        except ServerError as error:
            raise EnvironmentFailed(f"{self.flag}: reset: {error} ({error.code})") from error
        self.reward, self.done = 0.0, False
        text = observation_text(seen)
        prompt = columns.get("prompt")
        has_question = bool(prompt) and (isinstance(prompt, str) or prompt[-1].get("role") == "user")
        return f"\n\n{text}" if text and has_question else text or None

    async def step(self, message: str) -> Observation:
        """Answers the model's text. An action that the server refuses is answered by an error."""
        before = self.reward
        try:
            seen = await self._act({str(self.action.text_field): message})
        except ServerError as error:
            if error.code == "EXECUTION_ERROR":  # the environment raised: an environment's own fault
                raise EnvironmentFailed(f"{self.flag}: step: {error} ({error.code})") from error
            return Observation(f"Error: {error}")
        return Observation(observation_text(seen), reward=self.reward - before, done=self.done)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Observation:
        """Calls a tool. Raises ServerError where the action is refused, or the tool failed."""
        if self.done:
            raise ServerError("DONE", "the episode is over")
        if self.action.is_mcp:
            seen = await self._act({"type": "call_tool", "tool_name": name, "arguments": dict(arguments)})
            return Observation(result_text(seen), done=self.done)
        return Observation(observation_text(await self._act(dict(arguments))), done=self.done)

    async def list_tools(self) -> list[dict[str, Any]]:
        """Returns the tools of an MCP environment, as its server describes them."""
        await self._connect()
        seen = await self._ask("step", {"type": "list_tools"})
        return list(seen.get("tools") or ())

    def get_reward(self) -> float:
        """Returns the sum of the steps' rewards."""
        return self.reward

    async def close(self) -> None:
        """Ends the session, whatever has happened."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # ------------------------------------------------------------------- the connection

    async def _connect(self) -> None:
        client = client_class(self.flag)(
            self.url, connect_timeout_s=CONNECT_LIMIT, message_timeout_s=ENDLESS, mode="simulation"
        )
        try:
            await client.connect()
        except ConnectionError as error:
            raise EnvironmentFailed(f"{self.flag}: {error}; is the server still there?") from error
        self._client = client

    async def _act(self, action: dict[str, Any]) -> dict[str, Any]:
        return await self._ask("step", {**self.action.fixed, **action})

    async def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """Sends a message, and returns the observation that answers it.

        A call that took too long is still answered at some time. The server answers in order, so these answers are read first.
        """
        from websockets.exceptions import ConnectionClosed

        if self._client is None:
            raise EnvironmentFailed(f"{self.flag}: the session is closed")
        answer: dict[str, Any] = {}
        self._owed += 1
        try:
            with suppress(
                ConnectionClosed
            ):  # a full server sends an error and closes; the error is read below
                await self._client._send({"type": kind, "data": data})
            while self._owed:
                answer = await self._client._receive()
                self._owed -= 1
                self._add(answer)
        except ConnectionClosed as error:
            raise EnvironmentFailed(f"{self.flag}: the connection was lost ({error})") from error
        except ValueError as error:
            raise EnvironmentFailed(f"{self.flag}: the server's answer is no JSON ({error})") from error
        return self._observation(answer)

    def _add(self, answer: Mapping[str, Any]) -> None:
        """Adds the reward of an answer, and notes whether the episode is over."""
        data = answer.get("data") or {}
        if answer.get("type") == "observation":
            self.reward += float(data.get("reward") or 0.0)
            self.done = self.done or bool(data.get("done"))

    def _observation(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        data = answer.get("data") or {}
        if answer.get("type") == "observation":
            return dict(data.get("observation") or {})
        code = str(data.get("code", "UNKNOWN"))
        message = _error_message(data)
        if code == "CAPACITY_REACHED":
            raise NoRoom(f"{self.flag}: the server is full; raise its max_concurrent_envs ({message})")
        if code in OF_THE_ACTION:
            raise ServerError(code, message)
        raise EnvironmentFailed(f"{self.flag}: the server answered {message} ({code})")


# --------------------------------------------------------------------------- texts


def observation_text(observation: Mapping[str, Any]) -> str:
    """Returns what the model reads of an observation: its only field, where that is a text, else its JSON.

    Example:
        >>> observation_text({"text": "lower"}), observation_text({"board": [0, 1], "turn": 2}), observation_text({})
        ('lower', '{"board": [0, 1], "turn": 2}', '')
    """
    seen = {name: value for name, value in observation.items() if name not in OF_EVERY_OBSERVATION}
    if len(seen) == 1 and isinstance(only := next(iter(seen.values())), str):
        return only
    return answer_text(seen) if seen else ""


def result_text(observation: Mapping[str, Any]) -> str:
    """Returns what an MCP tool has answered: its texts, else its JSON. Raises ServerError where it failed.

    Example:
        >>> result_text({"result": {"content": [{"type": "text", "text": "7"}], "data": 7, "is_error": False}})
        '7'
    """
    result, error = observation.get("result"), observation.get("error")
    if error:
        message = error.get("message") if isinstance(error, dict) else error
        raise ServerError("TOOL_ERROR", str(message))
    if not isinstance(result, dict) or not isinstance(result.get("content"), list):
        return answer_text(result)
    parts = [part for part in result["content"] if isinstance(part, dict)]
    texts = [str(part.get("text")) for part in parts if part.get("type") == "text"]
    if result.get("is_error"):
        raise ServerError("TOOL_ERROR", "\n".join(texts) or "the tool failed")
    data = result.get("data")
    return "\n".join(texts) if texts else answer_text(result["content"] if data is None else data)


def _error_message(data: Mapping[str, Any]) -> str:
    """Joins an error's message and its details, which name the fields."""
    problems = [
        f"{'.'.join(map(str, each.get('loc') or ()))}: {each.get('msg')}" for each in data.get("errors") or ()
    ]
    return "; ".join([str(data.get("message", "an error without a message")), *problems])


def client_class(flag: str) -> Any:
    """Returns OpenEnv's client. Raises ValueError where its package is missing."""
    try:
        # Its import takes seconds, as it brings the server's packages.
        return importlib.import_module("openenv.core.generic_client").GenericEnvClient
    except ImportError as error:
        raise ValueError(f'{flag}: needs openenv-core ({error}): pip install "grpokit[openenv]"') from error
