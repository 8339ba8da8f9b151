"""Errors that are said to the user."""

from __future__ import annotations

import re

import pytest


def refuses(call, *parts: str, kind: type[ValueError] = ValueError) -> ValueError:
    """Assert that `call` raises `kind` with a message of one line and all `parts`; returns it."""
    with pytest.raises(kind, match=re.escape(parts[0])) as caught:
        call()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    return caught.value
