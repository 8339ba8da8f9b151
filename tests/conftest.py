"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os

# One thread: the models here are tiny, and a run of the suite uses a process per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("helpers")
torch.set_num_threads(1)
settings.register_profile("whole", deadline=None, print_blob=True, max_examples=50)
settings.register_profile("quick", settings.get_profile("whole"), max_examples=25)  # for `make test`
settings.load_profile("whole")


def pytest_collection_modifyitems(items):
    """Put files with slow tests first: a worker gets whole files, and the last ones must be short."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("vllm")}
    items.sort(key=lambda item: item.path not in slow)


# --------------------------------------------------------------------------- reports


@pytest.fixture(scope="session", autouse=True)
def _quick_reports():
    """Runs in this process end with the quick report, and a card without its curve; see the marker `full_report`."""
    from helpers import quick_reports

    with pytest.MonkeyPatch.context() as patch:
        quick_reports.quick(patch)
        yield


@pytest.fixture(autouse=True)
def _full_report(request, _quick_reports):
    """A test that is marked `full_report` gets the report as the user does."""
    if request.node.get_closest_marker("full_report") is None:
        yield
        return
    from helpers import quick_reports

    with pytest.MonkeyPatch.context() as patch:
        quick_reports.full(patch)
        yield
