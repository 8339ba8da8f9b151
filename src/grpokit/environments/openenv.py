"""OpenEnv environments: `--environment openenv:URL`. Each episode has a session of its own on the server.

MCP environments    → their tools are the model's tools
one string field    → the model's text is the action, and the observation is the answer
any other action    → one tool, `step`, with the action's JSON schema
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import NoRoom
from .contract import EnvironmentFailed, EnvironmentKind, Observation
from .openenv_session import Action, ServerError, Session, client_class
from .tools import Tool, by_name
from .workers import Workers

PREFIX = "openenv:"
START_LIMIT = 30.0  # time limit of each request at the start, in seconds
ROOM_AT_START = 300.0  # how long a full server is asked again for its tools, in seconds
OF_EVERY_ACTION = ("metadata",)


def read_action(schema: Mapping[str, Any]) -> Action:
    """Reads the JSON schema of an environment's actions.

    Example:
        >>> read_action({"properties": {"message": {"type": "string"}, "metadata": {"type": "object"}}}).text_field
        'message'
        >>> read_action({"properties": {"type": {"const": "call_tool"}, "tool_name": {"type": "string"}}}).is_mcp
        True
    """
    fields = {n: s for n, s in (schema.get("properties") or {}).items() if n not in OF_EVERY_ACTION}
    fixed = {name: field["const"] for name, field in fields.items() if "const" in field}
    is_mcp = fixed.get("type") in ("call_tool", "list_tools") or not fields
    free = {name: field for name, field in fields.items() if name not in fixed}
    text_field = None
    if len(free) == 1:
        ((name, field),) = free.items()
        text_field = name if field.get("type") == "string" and "enum" not in field else None
    required = [name for name in schema.get("required") or () if name in free]
    left_out = ("properties", "required", "title", "description")
    rest = {name: value for name, value in schema.items() if name not in left_out}
    rest |= {"type": "object", "properties": free} | ({"required": required} if required else {})
    return Action(is_mcp, text_field, fixed, rest)


def openenv_environment(url: str) -> EnvironmentKind:
    """Asks an OpenEnv server for its actions and tools.

    Args:
        url: the server's address, such as "http://localhost:8000".

    Returns:
        The description of the environment. Each instance is a session on the server.

    Raises:
        ValueError: the package is missing, nothing answers at the URL, or what answers is no OpenEnv server.
    """
    flag = f"--environment {PREFIX}{url}"
    client_class(flag)
    url = _with_scheme(url, flag)
    schema, metadata = _describe(url, flag)
    action = read_action(schema)
    name = re.sub(r"[^\w.-]+", "_", str(metadata.get("name") or url.partition("://")[2])).strip("_")
    if action.is_mcp:
        schemas = _list_tools(url, flag)
    elif action.text_field is not None:
        schemas = []
    else:
        about = schema.get("description") or metadata.get("description") or f"Acts in {name}."
        schemas = [_tool_schema("step", str(about), action.schema)]

    def bind(session: Session) -> list[Tool]:
        return [_make_tool(session, schema["function"]["name"], schema) for schema in schemas]

    return EnvironmentKind(
        name=name,
        make=lambda: Session(url, flag, action),
        bind=bind,
        has_steps=action.text_field is not None,
        has_reward=True,
        takes=("seed",),
        takes_all=True,
        needs=(),
        schemas=schemas,
    )


def _with_scheme(url: str, flag: str) -> str:
    """Returns the URL with http(s) in front and no slash behind. Raises ValueError where it names no host."""
    from urllib.parse import urlsplit

    url = re.sub(r"^ws(s?)://", r"http\1://", url if "://" in url else f"http://{url}").rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"{flag}: expected the server's URL, such as {PREFIX}http://localhost:8000")
    return url


def _describe(url: str, flag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the schema of a server's actions, and its metadata, where it gives them."""
    import httpx

    is_here = httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")  # never through a proxy
    with httpx.Client(timeout=START_LIMIT, follow_redirects=True, trust_env=not is_here) as client:
        try:
            answer, about = client.get(f"{url}/schema"), client.get(f"{url}/metadata")
        except httpx.HTTPError as error:
            raise ValueError(
                f"{flag}: no server answers ({type(error).__name__}: {error}); start it first, and check the URL"
            ) from error
    found, metadata = _object(answer), _object(about)
    if not isinstance(found.get("action"), dict):
        raise ValueError(
            f"{flag}: is no OpenEnv server: GET /schema answered {answer.status_code} without an action's schema"
        )
    return found["action"], metadata


def _object(answer: Any) -> dict[str, Any]:
    """Returns the JSON object of an answer, or an empty one."""
    try:
        found = answer.json() if answer.status_code == 200 else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _list_tools(url: str, flag: str) -> list[dict[str, Any]]:
    """Returns the schemas of an MCP environment's tools, once a full server has room."""

    async def ask() -> Sequence[dict[str, Any]]:
        for _ in range(int(ROOM_AT_START)):
            session = Session(url, flag, Action(True, None, {}, {}))
            try:
                return await session.list_tools()
            except NoRoom:
                await asyncio.sleep(1.0)
            finally:
                await session.close()
        raise ValueError(f"{flag}: was full for {ROOM_AT_START:g} seconds; raise its max_concurrent_envs")

    workers = Workers(1)  # runs its own event loop: a notebook's loop is already running
    try:
        tools = workers.submit(ask, is_async=True, seconds=ROOM_AT_START + START_LIMIT).result()
    except (EnvironmentFailed, ServerError) as error:
        raise ValueError(f"{flag}: its tools can't be listed: {error}") from error
    finally:
        workers.close()
    if not tools:
        raise ValueError(f"{flag}: its MCP environment has no tools")
    schemas = [
        _tool_schema(tool["name"], tool.get("description") or "", tool.get("input_schema") or {})
        for tool in tools
    ]
    by_name([Tool(schema["function"]["name"], len, schema) for schema in schemas], flag)
    return schemas


def _tool_schema(name: str, about: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, **parameters}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def _make_tool(session: Session, name: str, schema: Mapping[str, Any]) -> Tool:
    async def call(**arguments: Any) -> Observation:
        return await session.call(name, arguments)

    return Tool(name, call, schema)
