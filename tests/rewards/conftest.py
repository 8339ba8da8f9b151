"""Fixtures that all tests of rewards share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _restore_imports(monkeypatch):
    """Files put their directory on sys.path; it may not leak between tests."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def write(tmp_path):
    """write(text) -> the path of a file of reward functions."""

    def write(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
