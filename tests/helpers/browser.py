"""A real browser without a window, and a page's server in this process. Tests skip where there is no Chromium."""

from __future__ import annotations

import shutil
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn

from grpokit.commands.watch.server import listen, make_app


def chromium_path():
    """The browser of this machine; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    return found


@contextmanager
def browser():
    """A Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    path = chromium_path()
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def serving(*places, token="", host="127.0.0.1", port=0):
    """The address of the page of some runs, served from a thread."""
    opened = listen(host, port)
    app = make_app([Path(place) for place in places], token)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
        with suppress(OSError):
            opened.close()


@contextmanager
def page_of(browser, address, **context):
    """A page that was opened at `address`. At the end it has written no error, and has asked no other server."""
    opened = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
    opened.set_default_timeout(10_000)
    page = opened.new_page()
    page.errors, page.requests_outside = [], []
    page.on(
        "console", lambda said: page.errors.append(said.text) if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    inside = address.split("?")[0].split("#")[0]

    def asked(request):
        if not request.url.startswith((inside, "data:")):
            page.requests_outside.append(request.url)

    page.on("request", asked)
    page.goto(address)
    try:
        yield page
        assert page.errors == []
        assert page.requests_outside == []
    finally:
        opened.close()
