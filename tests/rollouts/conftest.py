"""Fixtures of the tests of sampling ahead."""

from __future__ import annotations

import threading

import pytest

import grpokit.training.setup.start
from helpers.elsewhere import Watch

# The threads that a run starts and must end.
STARTED = ("sampling", "sampling ahead", "vllm requests", "reward time limit")


@pytest.fixture
def engine(monkeypatch):
    """Runs sample by an engine of their own, and leave no thread behind."""
    watch = Watch()
    monkeypatch.setattr(grpokit.training.setup.start, "sampler_factory", watch.samplers)
    yield watch
    watch.before.clear()
    assert not [thread.name for thread in threading.enumerate() if thread.name in STARTED]
