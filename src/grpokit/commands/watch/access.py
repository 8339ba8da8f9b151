"""Who may read the page: only names of this machine by default, or whoever has the token."""

from __future__ import annotations

import hashlib
import hmac
import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The browser enforces it: the page runs its own scripts only, asks nobody else, and can't be put into another page.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def host_name(host: str) -> str:
    """Returns the name in a Host header, without its port.

    Example:
        >>> host_name("localhost:8700"), host_name("[::1]:8700")
        ('localhost', '::1')
    """
    if host.startswith("["):
        address, _, rest = host[1:].partition("]")
        return address if re.fullmatch(r"(:\d*)?", rest) and ":" in address else ""
    return host.split(":", 1)[0].lower()


class Guard:
    """Refuses requests of those who may not read, and adds security headers to the others.

    Without a token, the Host header must name this machine, against DNS rebinding. With a token,
    it must come in the address (`?token=…`) or in the cookie that this sets.
    """

    def __init__(self, app: ASGIApp, token: str = "") -> None:
        self.app, self.token = app, token
        # A cookie is shared by all ports of a host, so the cookie's name depends on the token.
        self.cookie = "grpokit_watch_" + hashlib.sha256(token.encode()).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":  # the start and the end; web sockets, of which the page has none
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Returns what to answer instead of the page; None where the request may pass."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("only GET and HEAD are answered\n", 405, {"Allow": "GET, HEAD"})
        if not self.token:
            name = host_name(headers.get("host", ""))
            if name in LOOPBACK:
                return None
            return PlainTextResponse(f"host {name!r}: only localhost and 127.0.0.1 are answered\n", 421)
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", "")
        if self._is_token(given):
            if scope["path"] != "/":
                return None
            response = RedirectResponse("./", 303)  # the token doesn't stay in the address
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return response
        if self._is_token(_cookie(headers.get("cookie", ""), self.cookie)):
            return None
        return PlainTextResponse(
            "open the address that `grpokit watch` has printed: it ends with ?token=…\n", 401
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
