"""The page's server: its files, and its questions under api/ with their answers as JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runs.report.style import CSS
from .access import Guard
from .completions import Wanted
from .views import Views

HERE = Path(__file__).parent
PORTS = 100  # ports that are tried, one after the other


def make_app(places: Sequence[Path], token: str = "") -> Starlette:
    """Returns the server of the page.

    Args:
        places: directories of runs, or directories that hold some.
        token: the token that a reader must send; "": only this machine's names are answered.
    """
    views = Views(places)
    scripts = [Route(f"/{path.name}", _file(path, "text/javascript")) for path in sorted(HERE.glob("*.js"))]
    routes = [
        Route("/", _file(HERE / "page.html", "text/html")),
        Route("/page.css", _text(f"{CSS}\n{(HERE / 'page.css').read_text(encoding='utf-8')}", "text/css")),
        *scripts,
        *(Route(f"/api/{name}", _answer(question, views)) for name, question in QUESTIONS.items()),
    ]
    middleware = [
        Middleware(Guard, token=token),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=5),
    ]
    return Starlette(routes=routes, middleware=middleware)


def _text(text: str, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(text, media_type=kind)


def _file(path: Path, kind: str) -> Callable[[Request], Response]:
    return _text(path.read_text(encoding="utf-8"), kind)


# --------------------------------------------------------------------------- questions


def _changes(views: Views, given: QueryParams) -> Any:
    """Answers that nothing has changed where the caller has seen the same."""
    found = views.changes()
    version = hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()[:16]
    return {"version": version, **({"same": True} if given.get("since") == version else found)}


def _overview(views: Views, given: QueryParams) -> Any:
    return views.overview(given.get("run", ""))


def _side_by_side(views: Views, given: QueryParams) -> Any:
    return views.side_by_side(given.getlist("run"))


def _completions(views: Views, given: QueryParams) -> Any:
    sort = given.get("sort", "group")
    if sort not in ("group", "reward", "length"):
        raise ValueError(f"sort {sort!r}: expected group, reward or length")
    wanted = Wanted(
        reward=(_number(given, "reward_min"), _number(given, "reward_max")),
        length=(_number(given, "length_min"), _number(given, "length_max")),
        ending=given.get("ending", ""),
        text=given.get("text", ""),
        sort=sort,
        descending=given.get("order", "down") == "down",
        page=_whole(given, "page") or 0,
        holding=given.get("holding", ""),
    )
    return views.completions(given.get("run", ""), _whole(given, "step"), wanted)


def _completion(views: Views, given: QueryParams) -> Any:
    places = [_whole(given, name) or 0 for name in ("step", "group", "generation")]
    return views.completion(given.get("run", ""), *places)


def _recorded(views: Views, given: QueryParams) -> Any:
    return views.recorded(given.get("run", ""), _whole(given, "step"))


def _tokens(views: Views, given: QueryParams) -> Any:
    step, place, first = (_whole(given, name) or 0 for name in ("step", "place", "first"))
    return views.tokens(given.get("run", ""), step, place, first)


QUESTIONS: dict[str, Callable[[Views, QueryParams], Any]] = {
    "changes": _changes,
    "overview": _overview,
    "compare": _side_by_side,
    "completions": _completions,
    "completion": _completion,
    "recorded": _recorded,
    "tokens": _tokens,
}


def _answer(question: Callable[[Views, QueryParams], Any], views: Views) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            return _json(question(views, request.query_params))
        except (ValueError, OSError) as error:
            return _json({"error": " ".join(str(error).split())}, 400)

    return answer


def _number(given: QueryParams, name: str) -> float | None:
    text = given.get(name, "")
    try:
        value = float(text) if text else None
    except ValueError as error:
        raise ValueError(f"{name} {text!r}: expected a number") from error
    return value if value is None or math.isfinite(value) else None


def _whole(given: QueryParams, name: str) -> int | None:
    text = given.get(name, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError(f"{name} {text!r}: expected a whole number, 0 or more")
    return int(text) if text else None


def _json(value: Any, code: int = 200) -> Response:
    # Not ensure_ascii=False: half a surrogate pair, which a model may write, has no form in UTF-8.
    text = json.dumps(without_nan(value), allow_nan=False, separators=(",", ":"))
    return Response(text, code, media_type="application/json")


def without_nan(value: Any) -> Any:
    """Returns the value with None in place of numbers that JSON doesn't have.

    Example:
        >>> without_nan({"loss": float("nan"), "steps": (1, 2)})
        {'loss': None, 'steps': [1, 2]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


# --------------------------------------------------------------------------- the socket


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at `port`, or at the next one that is free.

    Raises:
        ValueError: the host is none of this machine's, or no port is free.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(
            f"--host {host}: {error.strerror}; use 127.0.0.1, or an address of this machine"
        ) from error
    for number in range(port, min(port + PORTS, 65536)) if port else [0]:
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((address[0], number))
            opened.listen()
            return opened
        except OSError as error:
            opened.close()
            if error.errno != errno.EADDRINUSE:
                raise ValueError(
                    f"--host {host} --port {number}: {error.strerror}; use 127.0.0.1 and a port from 1024"
                ) from error
    raise ValueError(f"--port {port}: it and the {PORTS - 1} after it are taken; name another")
