"""A real browser without a window. Tests skip where there is no Chromium."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest


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
